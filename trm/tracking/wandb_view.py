"""W&B: one run, online or offline, with tables and pictures of held-out puzzles."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trm.config import Config, TrackingConfig, check_wandb, shortened, to_plain
from trm.errors import UserError, message_of
from trm.ground.folder import CHECKPOINTS, GRID_FILE, METRICS_FILE, best_step, steps_in
from trm.tracking.labels import labels

if TYPE_CHECKING:
    from trm.tracking.evaluation import Evaluation

# wandb is imported where it is used: it costs a second of start-up, and a run without it must not need it.

log = logging.getLogger(__name__)

WANDB_INIT_TIMEOUT_S = 30.0  # a machine without a network should not stand still for W&B's own 90 s
WANDB_FINISH_TIMEOUT_S = 60.0  # W&B waits for ever by default; what is not sent by then stays on disk for `wandb sync`
WANDB_ARTIFACT_TIMEOUT_S = 1800.0  # the same with a checkpoint to upload
WANDB_FLUSH_S = 1  # W&B's own 15 s loses that much of the offline run when the process is killed
MOST_PICTURED = 2  # puzzles whose every supervision step is drawn, which takes longest; the table has all of them
CURVE_COLUMNS = ("supervision step", "exact accuracy")
PUZZLE_COLUMNS = (
    "puzzle", "question", "prediction (wrong cells in brackets)", "answer", "wrong cells", "supervision steps used",
)  # fmt: skip

PROJECT, JOB_TYPE = "trm-scaling-study", "train"  # where neither tracking.* nor W&B's own settings say it
WandbMode = Literal["online", "offline", "disabled"]


def wandb_home(run_dir: Path) -> Path:
    """The folder whose wandb/ a run logs into: WANDB_DIR, or its sweep's, so that a sweep's runs are together, or its own."""
    if told := os.environ.get("WANDB_DIR"):
        return Path(told).expanduser()
    return run_dir.parent if _in_sweep(run_dir) else run_dir


def _in_sweep(run_dir: Path) -> bool:
    return (run_dir.parent / GRID_FILE).exists()


def with_wandbs_own(tracking: TrackingConfig, group: str | None = None) -> TrackingConfig:
    """The settings of tracking, where those that are not given come from W&B's own variables and settings files.

    `group` is the default group. Raises ConfigError for a value that W&B does not accept.
    """
    own = _setup_wandb().settings
    found = replace(
        tracking,
        project=tracking.project or own.project or PROJECT,
        entity=tracking.entity or own.entity,
        group=shortened(tracking.group or own.run_group or group or "") or None,
        tags=tracking.tags or list(own.run_tags or ()),
        notes=tracking.notes or own.run_notes,
        job_type=tracking.job_type or own.run_job_type or JOB_TYPE,
    )
    check_wandb(found)
    return found


class WandbTracker:
    """One W&B run, online or offline. Raises one of `errors` when the client's server, process or disk fails."""

    label = "W&B"

    def __init__(self, cfg: Config, run_dir: Path, data: dict[str, Any] | None, mode: WandbMode, run_id: str) -> None:
        """Start the W&B run `run_id`, or continue it where it exists; `mode` is online or offline, `data` as in open_trackers."""
        import wandb

        self.errors: tuple[type[Exception], ...] = wandb_errors()
        home = wandb_home(run_dir)
        in_sweep = _in_sweep(run_dir)
        tracking = with_wandbs_own(cfg.tracking, run_dir.parent.name if in_sweep else None)
        own_name = None if in_sweep else wandb.setup().settings.run_name  # otherwise all runs of a sweep would have this name
        self._wandb, self._run_dir, self._artifact, self._labels = wandb, run_dir, cfg.tracking.artifact, labels(cfg, data)
        self.mode = mode
        self._run = wandb.init(
            mode=mode,
            id=run_id,
            resume="allow",
            dir=str(home),
            **{name: getattr(tracking, name) for name in ("project", "entity", "group", "job_type", "tags", "notes")},
            name=shortened(own_name or cfg.run_name),
            config=to_plain(cfg) | {"labels": asdict(self._labels), "data_read": data},
            settings=wandb.Settings(
                silent=True,
                quiet=True,
                console="off",
                init_timeout=WANDB_INIT_TIMEOUT_S,
                finish_timeout=WANDB_FINISH_TIMEOUT_S if self._artifact == "none" else WANDB_ARTIFACT_TIMEOUT_S,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=WANDB_FLUSH_S,
            ),
        )
        self.run_id = str(self._run.id)  # `wandb agent` gives its own id, whatever was asked for
        self.url: str | None = self._run.url  # the run's page, where there is one: online
        folders = f"{shlex.quote(str(home / 'wandb'))}/*run-*-{self.run_id}"
        self.rescue = f"`wandb sync --include-online {folders}` uploads what reached the disk, {METRICS_FILE} continues"
        self._run.summary["data_caveats"] = (data or {}).get("caveats", [])  # next to the numbers that they affect
        # The x axis is global_step, logged as a value: W&B's own step cannot go back, but resuming from a checkpoint does.
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Send one row."""
        self._run.log({"global_step": global_step, **{f"{kind}/{name}": value for name, value in values.items()}})

    def show(self, global_step: int, evaluation: Evaluation) -> None:
        """Send a line plot by supervision step, and the held-out puzzles as a table and as pictures."""
        row: dict[str, Any] = {"global_step": global_step}
        if self._labels.paper_exact_accuracy is not None:
            row["paper/exact_accuracy"] = self._labels.paper_exact_accuracy  # so that a panel has both in one chart
        with tempfile.TemporaryDirectory() as folder:
            try:
                row |= self._drawn(evaluation, Path(folder))
            finally:  # the numbers are logged even if something cannot be drawn
                self._run.log(row)

    def _drawn(self, evaluation: Evaluation, folder: Path) -> dict[str, Any]:
        """The curve, the table and the pictures, whose files are in `folder`."""
        curve = "eval/accuracy_by_supervision_step"
        accuracies = [(step, metrics["exact_accuracy"]) for step, metrics in enumerate(evaluation.by_step, start=1)]
        table = self._table(f"{curve}_table", CURVE_COLUMNS, accuracies)
        row = {curve: self._wandb.plot.line(table, *CURVE_COLUMNS, title="Exact accuracy by supervision step")}
        if shown := evaluation.puzzles:
            words = [(p.puzzle.name, *p.texts, p.wrong_cells, p.steps_used) for p in shown]
            row["held_out/puzzles"] = self._table("held_out/puzzles", PUZZLE_COLUMNS, words)
            row["held_out/thinking"] = []
            for held_out in shown[:MOST_PICTURED]:  # the client copies a file, and does not draw it again
                file = folder / f"{held_out.puzzle.name}.png"
                file.write_bytes(held_out.png)
                row["held_out/thinking"].append(self._wandb.Image(str(file), caption=held_out.puzzle.name))
        return row

    def _table(self, key: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> Any:
        """A table that is a file of the run.

        A table that is not bound to the run also becomes an artifact, for which the client waits for the server. Training
        would stop while the server cannot be reached.
        """
        table = self._wandb.Table(columns=list(columns), data=rows)
        table.bind_to_run(self._run, key, self._run.step)
        return table

    def _upload_checkpoint(self) -> None:
        """Queue the checkpoint that tracking.artifact names, with its metadata; `finish` waits for it."""
        alias, checkpoints = {"best": "best", "last": "latest"}[self._artifact], self._run_dir / CHECKPOINTS
        step = best_step(checkpoints) if alias == "best" else max(steps_in(checkpoints), default=None)
        if step is None:
            log.warning("%s: holds no %s checkpoint to upload to W&B", checkpoints, self._artifact)
            return
        folder = checkpoints / f"step_{step}"
        artifact = self._wandb.Artifact(f"checkpoint-{self._run.id}", type="model", metadata={"folder": folder.name})
        # neither copied aside nor into W&B's cache: a completed run's checkpoint stays as it is
        artifact.add_dir(str(folder), skip_cache=True, policy="immutable")
        self._run.log_artifact(artifact, aliases=[alias])

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Send the summary, a completed run's checkpoint where it is asked for, and the run's end; waits for a limited time."""
        self._run.summary.update(summary)
        if status == "preempted":
            self._run.mark_preempting()
        try:
            if status == "completed" and self._artifact != "none":
                self._upload_checkpoint()
        finally:
            self._run.finish(exit_code=exit_code)

    def abandon(self) -> None:
        """End the client, so that neither the end of the process nor a sweep's next job meets the broken one."""
        teardown_wandb()


def open_wandb(
    cfg: Config, run_dir: Path, data: dict[str, Any] | None, mode: WandbMode, run_id: str | None, warn: Callable[[str], None]
) -> WandbTracker | None:
    """The W&B run, offline where it cannot start online; None, with a warning, where it cannot start at all.

    A run without `run_id` takes the one of W&B's own settings (WANDB_RUN_ID), but not in a sweep, all of whose runs would have it.
    """
    if run_id is None and not _in_sweep(run_dir):
        run_id = _setup_wandb().settings.run_id
    run_id = run_id or secrets.token_hex(6)
    attempts: list[WandbMode] = ["online", "offline"] if mode == "online" else ["offline"]
    for attempt in attempts:
        try:
            view = WandbTracker(cfg, run_dir, data, attempt, run_id)
        except wandb_errors() as error:
            teardown_wandb()  # else the id counts as taken in this process
            instead = offline_hint(run_dir) if attempt == "online" else f"{METRICS_FILE} continues"
            warn(f"W&B cannot start {attempt} ({message_of(error)}): {instead}")
            continue
        if attempt == "online":
            log.info("W&B: %s", view.url)
        return view
    return None


def wandb_errors() -> tuple[type[Exception], ...]:
    """What the client raises when its server, process or disk fails."""
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (OSError, wandb.errors.Error, HandleAbandonedError, MailboxClosedError)


def _setup_wandb() -> Any:
    """Prepare the client for one run, without messages of its own, and read its settings."""
    import wandb

    if wandb.run is not None:
        # an earlier job of a sweep ended in this process without `finish`: never log into its run
        teardown_wandb()
    os.environ.setdefault("WANDB_SILENT", "true")  # already while it reads its settings
    try:
        return wandb.setup(wandb.Settings(silent=True, quiet=True))
    except (ValueError, wandb.errors.UsageError) as error:
        for wrong in getattr(error, "errors", list)():  # pydantic's, whose own text is of several lines
            error = ValueError(f"{wrong['loc'][0]}: {wrong['msg']}")
        said = message_of(error)
        raise UserError(f"W&B does not accept a WANDB_ variable of the environment ({said}): correct or unset it") from error


def key_problem() -> str | None:
    """Prepare the client; None if it accepts a key, else the problem. It asks no server, and no message shows the key."""
    import wandb

    settings = _setup_wandb().settings
    told, settings.mode = settings.mode, "online"  # in offline mode the client ignores the key
    try:
        return None if wandb.login(prompt=False, verify=False) else "there is none"
    except wandb.errors.AuthenticationError as error:  # a malformed key; the message has its length, not the key
        return message_of(error)
    finally:
        settings.mode = told


def teardown_wandb() -> None:
    """End W&B's process and an open run in any state."""
    import wandb

    # SystemExit is how W&B reports that its process ended with an error.
    errors: tuple[type[BaseException], ...] = (*wandb_errors(), SystemExit)
    with contextlib.suppress(*errors):
        if wandb.run is not None:  # otherwise the client believes that a run is open, and refuses to log in
            wandb.run.finish(exit_code=1)
    with contextlib.suppress(*errors):
        wandb.teardown()


def told_mode() -> str:
    """The mode that W&B itself would take, from WANDB_MODE or from its settings files, where `wandb offline` writes it."""
    if (told := os.environ.get("WANDB_MODE")) == "disabled":  # before wandb is imported
        return told
    mode = str(_setup_wandb().settings.mode)
    return {"dryrun": "offline"}.get(mode, mode)


def choose_wandb_mode(wanted: str, run_dir: Path, warn: Callable[[str], None]) -> WandbMode:
    """The mode that tracking.wandb=`wanted` means on this machine. Raises UserError where it is not possible."""
    asked = told_mode() if wanted == "auto" else wanted
    if asked == "disabled":
        return "disabled"
    if asked == "offline":
        _setup_wandb()  # now, when a wrong environment is still the user's error
        log.info("W&B: %s", offline_hint(run_dir))
        return "offline"
    problem = key_problem()
    if problem is None:
        return "online"
    if wanted == "online":
        raise UserError(
            f"tracking.wandb=online needs a W&B key ({problem}): run `wandb login`, set WANDB_API_KEY, or use tracking=offline"
        )
    if problem == "there is none":
        log.info("no W&B key: %s", offline_hint(run_dir))
    else:
        warn(f"W&B cannot log in ({problem}): {offline_hint(run_dir)}")
    return "offline"


def offline_hint(run_dir: Path) -> str:
    """Where an offline run of `run_dir` goes, and how to upload it."""
    folder = wandb_home(run_dir) / "wandb"
    return f"logging offline to {folder}; `wandb sync {shlex.quote(str(folder))}/offline-run-*` uploads it"
