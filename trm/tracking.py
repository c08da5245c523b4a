"""Where metrics go: metrics.jsonl always; TensorBoard and W&B as the config asks.

metrics.jsonl is the record of the run, so an error there ends the run. TensorBoard and W&B are views of it: one that
breaks is dropped with one warning, which is logged and kept in `Trackers.warnings` for summary.json.

Both views name a value `kind/name` (train/loss, eval/exact_accuracy).
"""

import contextlib
import json
import logging
import math
import os
import secrets
import shlex
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from trm.config import Config, to_plain
from trm.errors import UserError

# wandb and torch.utils.tensorboard are imported where they are used: they cost seconds of start-up, and a run that uses
# neither must not need them.

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
WANDB_INIT_TIMEOUT_S = 30.0  # a machine without a network should not stand still for W&B's own 90 s
WANDB_FINISH_TIMEOUT_S = 60.0  # W&B's own default is to wait for ever; what is not sent by then stays on disk for `wandb sync`
WANDB_FLUSH_S = 1  # W&B's own 15 s loses that much of the offline run when the process is killed


WandbMode = Literal["online", "offline", "disabled"]


class Tracker(Protocol):
    """Something that takes the metrics of one run."""

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Take the values of one step; `kind` is train or eval."""

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Close, once, with the run's end: `status` is completed, failed or preempted."""


class View(Tracker, Protocol):
    """A tracker that the run can do without: when one of its `errors` comes, it is dropped."""

    label: str
    errors: tuple[type[Exception], ...]
    rescue: str  # what the user can do about a dropped one

    def abandon(self) -> None:
        """Let go of a broken tracker; raises nothing."""


class JsonlTracker:
    """One strict-JSON object a line: kind, global_step, then the values; NaN and infinities are null.

    Each line is handed to the system as it is logged, so kill -9 tears at most the last one.
    Raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open `path` to append after `resume_step` (None = a fresh run): the steps of later lines come again, so those go."""
        if path.exists():
            _cut_lines(path, -1 if resume_step is None else resume_step)
        self._file = path.open("ab", buffering=0)

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Append one line."""
        assert not {"kind", "global_step"} & values.keys(), values
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"kind": kind, "global_step": global_step, **finite}, allow_nan=False).encode() + b"\n"
        # One write is the rule, but a nearly full disk may take only a part: the next write then raises OSError.
        while line:
            line = line[self._file.write(line) :]

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Close the file."""
        self._file.close()


def _cut_lines(path: Path, last_step: int) -> None:
    """Rewrite `path`, all or nothing, without the lines after `last_step` and without torn ones."""
    kept, torn = [], 0
    for line in path.read_bytes().splitlines():
        try:
            keep = json.loads(line)["global_step"] <= last_step
        except (ValueError, TypeError, KeyError):  # ValueError: not JSON, or not even UTF-8
            torn += 1
            continue
        if keep:
            kept.append(line + b"\n")
    if torn:
        log.info("%s: left out %d unreadable line(s), as a killed run leaves one", path, torn)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class TensorBoardTracker:
    """Event files in `folder`. Raises OSError when they cannot be written."""

    label = "TensorBoard"
    errors: tuple[type[Exception], ...] = (OSError,)
    rescue = f"{METRICS_FILE} goes on"

    def __init__(self, folder: Path, resume_step: int | None) -> None:
        """Open an event file; TensorBoard hides what older files hold of the steps after `resume_step` (None = all steps)."""
        from torch.utils.tensorboard import SummaryWriter

        purge_step = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)  # type: ignore[no-untyped-call]

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Queue one scalar for each value; a thread of the writer appends them to the file at once."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, global_step)  # type: ignore[no-untyped-call]

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Close the event file."""
        self._writer.close()  # type: ignore[no-untyped-call]

    def abandon(self) -> None:
        """Leave the file as it is: closing would only try to write again."""


class WandbTracker:
    """One W&B run, online or offline. Raises one of `errors` when the client's server, process or disk fails."""

    label = "W&B"

    def __init__(self, cfg: Config, run_dir: Path, mode: WandbMode, run_id: str) -> None:
        """Start the W&B run `run_id`, or continue it where it exists; `mode` is online or offline."""
        import wandb

        self.errors: tuple[type[Exception], ...] = _wandb_errors()
        folders = f"{shlex.quote(str(run_dir / 'wandb'))}/*run-*-{run_id}"
        self.rescue = f"`wandb sync --include-online {folders}` uploads what reached the disk, {METRICS_FILE} goes on"
        _setup_wandb()
        tracking = cfg.tracking
        self._run = wandb.init(
            mode=mode,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            tags=tracking.tags,
            notes=tracking.notes,
            name=cfg.run_name,
            config=to_plain(cfg),
            settings=wandb.Settings(
                silent=True,
                quiet=True,
                console="off",
                init_timeout=WANDB_INIT_TIMEOUT_S,
                finish_timeout=WANDB_FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=WANDB_FLUSH_S,
            ),
        )
        # The x axis is global_step, logged as a value: W&B's own step cannot go back, but resuming from a checkpoint does.
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")
        self._run.define_metric("eval/exact_accuracy", step_metric="global_step", summary="max")

    @property
    def url(self) -> str | None:
        """The run's page, where there is one: online."""
        url: str | None = self._run.url
        return url

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Send one row."""
        self._run.log({"global_step": global_step, **{f"{kind}/{name}": value for name, value in values.items()}})

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Send the summary and the end of the run; waits at most WANDB_FINISH_TIMEOUT_S."""
        self._run.summary.update(summary)
        if status == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)

    def abandon(self) -> None:
        """End the client, so that neither the end of the process nor a sweep's next job meets the broken one."""
        _teardown_wandb()


def _wandb_errors() -> tuple[type[Exception], ...]:
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (OSError, wandb.errors.Error, HandleAbandonedError, MailboxClosedError)


def _setup_wandb() -> None:
    """Make the client ready for one run, without messages of its own beside those of the run."""
    import wandb

    if wandb.run is not None:
        # A sweep's job before this one ended in this process without `finish`: never log into its run.
        _teardown_wandb()
    wandb.setup(wandb.Settings(silent=True, quiet=True, mode="online"))  # else WANDB_MODE=offline would hide the key


def _teardown_wandb() -> None:
    """End W&B's process and an open run, whatever state they are in."""
    import wandb

    # SystemExit is how W&B reports that its process ended with an error.
    errors: tuple[type[BaseException], ...] = (*_wandb_errors(), SystemExit)
    with contextlib.suppress(*errors):
        if wandb.run is not None:  # else the client believes for ever that a run is open, and refuses to log in
            wandb.run.finish(exit_code=1)
    with contextlib.suppress(*errors):
        wandb.teardown()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class Trackers:
    """The run's trackers as one; hosts other than rank 0 have none, and every call does nothing there.

    Attributes:
        wandb_run_id: id of the W&B run, for the checkpoint, so that a resumed run continues it; None without W&B.
        wandb_mode: online, offline or disabled: what it came to when the run started.
        warnings: one line for each tracker that had to fall back or was dropped, for summary.json.
    """

    def __init__(self, wandb_run_id: str | None) -> None:
        self.wandb_run_id = wandb_run_id
        self.wandb_mode: WandbMode = "disabled"
        self.warnings: list[str] = []
        self._record: Tracker | None = None
        self._views: list[View] = []

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Give the values of one step to every tracker. Raises OSError when metrics.jsonl cannot be written."""
        if self._record is not None:
            self._record.log(kind, global_step, values)
        self._each_view(f"at step {global_step}", lambda view: view.log(kind, global_step, values))

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Close every tracker, once; `warnings` is complete only after this."""
        self._each_view("while finishing", lambda view: view.finish(status, exit_code, summary))
        if self._record is not None:
            self._record.finish(status, exit_code, summary)

    def _warn(self, text: str) -> None:
        log.warning(text)
        self.warnings.append(text)

    def _each_view(self, when: str, call: Callable[[View], None]) -> None:
        for view in tuple(self._views):
            try:
                call(view)
            except view.errors as error:
                self._views.remove(view)
                view.abandon()
                self._warn(f"{view.label} failed {when} ({_one_line(error)}) and was dropped: {view.rescue}")


def open_trackers(cfg: Config, run_dir: Path, *, is_main: bool, resume_step: int | None, wandb_run_id: str | None) -> Trackers:
    """Open what `cfg.tracking` asks for, in `run_dir`.

    Args:
        cfg: the run's settings; all of them go to W&B.
        run_dir: the run folder, which exists.
        is_main: whether this host is rank 0, the only one that logs.
        resume_step: step of the checkpoint that the run goes on from; None = from the beginning, and the metrics that an
            earlier start left in `run_dir` are cut off.
        wandb_run_id: the W&B run to continue; None = a new one.

    Raises:
        UserError: tracking.wandb=online without a usable key.
        OSError: metrics.jsonl cannot be written.
    """
    trackers = Trackers(wandb_run_id)
    if not is_main:
        return trackers
    mode = choose_wandb_mode(cfg.tracking.wandb, run_dir, trackers._warn)
    trackers._record = JsonlTracker(run_dir / METRICS_FILE, resume_step)
    if cfg.tracking.tensorboard:
        folder = run_dir / "tensorboard"
        try:
            trackers._views.append(TensorBoardTracker(folder, resume_step))
        except TensorBoardTracker.errors as error:
            trackers._warn(f"TensorBoard cannot write to {folder} ({_one_line(error)}): {METRICS_FILE} goes on")
    if mode != "disabled":
        _open_wandb(trackers, cfg, run_dir, mode)
    return trackers


def choose_wandb_mode(wanted: str, run_dir: Path, warn: Callable[[str], None]) -> WandbMode:
    """What tracking.wandb=`wanted` comes to on this machine."""
    # W&B's own variable says what the user wants as plainly as a key does.
    asked = os.environ.get("WANDB_MODE") if wanted == "auto" else wanted
    if asked == "disabled":
        return "disabled"
    if asked == "offline":
        return "offline"
    import wandb

    problem = ""
    try:
        _setup_wandb()
        if wandb.login(prompt=False, verify=False):
            return "online"
    except wandb.errors.AuthenticationError as error:  # a malformed key; the message has its length, not the key
        problem = _one_line(error)
    if wanted == "online":
        raise UserError(
            f"tracking.wandb=online needs a W&B key ({problem or 'there is none'}): "
            "run `wandb login`, set WANDB_API_KEY, or use tracking=offline"
        )
    if problem:
        warn(f"W&B cannot log in ({problem}): {_offline(run_dir)}")
    else:
        log.info("no W&B key: %s", _offline(run_dir))
    return "offline"


def _offline(run_dir: Path) -> str:
    folder = run_dir / "wandb"
    return f"logging offline to {folder}; `wandb sync {shlex.quote(str(folder))}/offline-run-*` uploads it"


def _open_wandb(trackers: Trackers, cfg: Config, run_dir: Path, mode: WandbMode) -> None:
    """Add W&B to `trackers`: online if that is the mode and works, else offline, else not at all."""
    run_id = trackers.wandb_run_id or "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
    attempts: list[WandbMode] = ["online", "offline"] if mode == "online" else ["offline"]
    for attempt in attempts:
        try:
            view = WandbTracker(cfg, run_dir, attempt, run_id)
        except _wandb_errors() as error:
            _teardown_wandb()  # else the id counts as taken in this process
            instead = _offline(run_dir) if attempt == "online" else f"{METRICS_FILE} goes on"
            trackers._warn(f"W&B cannot start {attempt} ({_one_line(error)}): {instead}")
            continue
        trackers.wandb_run_id, trackers.wandb_mode = run_id, attempt
        trackers._views.append(view)
        if attempt == "online":
            log.info("W&B: %s", view.url)
        return
