"""Errors that a command prints in one line on stderr: wrong input (exit code 2), or a run that cannot continue (exit code 1)."""

import os

# trm/cli.py says what the codes mean
EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_PREEMPTED = 1, 2, 130, 141, 143
SECRET = "WANDB_API_KEY"


def holds_secret(text: str) -> bool:
    """Whether the text contains the W&B key of the environment, for example through `${oc.env:WANDB_API_KEY}`."""
    key = os.environ.get(SECRET)
    return bool(key) and str(key) in text


def plain_line(text: str) -> str:
    """The text on one line, without control characters and without the W&B key, since messages quote values and files."""
    if holds_secret(text):
        text = text.replace(os.environ[SECRET], "***")
    line = " ".join(part for part in map(str.strip, text.splitlines()) if part)
    return "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in line)


def message_of(error: BaseException) -> str:
    """An error's message on one line, or its type if the message is empty."""
    return plain_line(str(error)) or type(error).__name__


def described(error: BaseException) -> str:
    """An error's type and message on one line."""
    return f"{type(error).__name__}: {plain_line(str(error))}"


class UserError(Exception):
    """The input is wrong. The message is one line that names the key or file and says what to do."""

    def __str__(self) -> str:
        return plain_line(super().__str__())


class ConfigError(UserError):
    """A config key is unknown, out of range or contradicts another key."""


class DataError(UserError):
    """A dataset or a puzzle is missing, malformed or contradicts itself."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


class RunFailure(Exception):
    """A run cannot continue although its input is right: full disk, loss not finite, memory. The line says what to do."""
