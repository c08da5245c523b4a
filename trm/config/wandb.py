"""What W&B takes of a run's fields: its client and its server refuse the rest, some of it not before an offline run is synced."""

import hashlib

from trm.config.running import TrackingConfig
from trm.errors import ConfigError

LONGEST_NAME, LONGEST_TAG = 128, 64  # characters
NOT_IN_ADDRESSES = "/\\#?%:"


def check_wandb(tracking: TrackingConfig) -> None:
    """Check every field that goes to W&B, where the run logs there. Raises ConfigError."""
    if tracking.wandb == "disabled":
        return
    for key in ("project", "entity"):
        check_address(f"tracking.{key}", getattr(tracking, key))
    check_text("tracking.group", tracking.group, LONGEST_NAME)
    check_text("tracking.job_type", tracking.job_type, LONGEST_TAG)
    for number, tag in enumerate(tracking.tags):
        check_text(f"tracking.tags[{number}]", tag, LONGEST_TAG)


def check_address(key: str, text: str | None) -> None:
    """Check a name that is a part of addresses: a project's or an entity's; None passes. Raises ConfigError."""
    check_text(key, text, LONGEST_NAME)
    if found := [c for c in NOT_IN_ADDRESSES if c in (text or "")]:
        raise ConfigError(f"{key}={text}: not a name for W&B: leave out {' '.join(found)}")


def check_text(key: str, text: str | None, most: int) -> None:
    """Check the length of a field; None passes. Raises ConfigError."""
    if text is not None and not text.strip():
        raise ConfigError(f"{key} is empty, which W&B refuses: name it or leave it out")
    if text is not None and len(text) > most:
        raise ConfigError(f"{key}={text}: W&B takes {most} characters, not {len(text)}: shorten it")


def shortened(text: str) -> str:
    """A name of this program's making as W&B takes it; a hash tells one that had to be cut from others."""
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
