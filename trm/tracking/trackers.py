"""All trackers of a run, and the first of them: metrics.jsonl, the record of the run."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm.config import Config
from trm.errors import described, message_of
from trm.ground.folder import METRICS_FILE, write_whole
from trm.tracking.event_files import TensorBoardTracker
from trm.tracking.wandb_view import WandbMode, WandbTracker, choose_wandb_mode, open_wandb

if TYPE_CHECKING:
    from trm.tracking.evaluation import Evaluation

log = logging.getLogger(__name__)


class JsonlTracker:
    """One strict-JSON object a line: kind, global_step, then the values; NaN and infinities are null.

    Each line is handed to the system as it is logged, so kill -9 tears at most the last one.
    Raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Open `path` to append after `resume_step` (None = a fresh run), without later lines, whose steps come again.

        The file is rewritten, all or nothing; lines that a killed run tore are left out too.
        """
        kept, torn = [], 0
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                text = line.decode()
                keep = json.loads(text)["global_step"] <= (-1 if resume_step is None else resume_step)
            except (ValueError, TypeError, KeyError):  # ValueError: not JSON, or not even UTF-8
                torn += 1
                continue
            if keep:
                kept.append(f"{text}\n")
        if torn:
            log.info("%s: left out %d unreadable line(s), as a killed run leaves one", path, torn)
        if path.exists():
            write_whole(path, "".join(kept))
        self._file = path.open("ab", buffering=0)

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Append one line."""
        assert not {"kind", "global_step"} & values.keys(), values
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"kind": kind, "global_step": global_step, **finite}, allow_nan=False).encode() + b"\n"
        while line:  # a nearly full disk may take only a part: the next write then raises OSError
            line = line[self._file.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Trackers:
    """All trackers of a run. Hosts other than rank 0 have none, and calls do nothing there.

    Attributes:
        wandb_run_id: id of the W&B run, for the checkpoint, so that a resumed run continues it; None without W&B.
        wandb_mode: online, offline or disabled, as decided when the run started.
        warnings: one line for each tracker that had to fall back or was dropped, for summary.json.
    """

    def __init__(self, wandb_run_id: str | None) -> None:
        self.wandb_run_id = wandb_run_id
        self.wandb_mode: WandbMode = "disabled"
        self.warnings: list[str] = []
        self._record: JsonlTracker | None = None
        self._views: list[TensorBoardTracker | WandbTracker] = []  # optional: one that fails is dropped
        self._undrawn: set[str] = set()  # views that have warned of a failure to draw

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Give the values of one step to every tracker. Raises OSError when metrics.jsonl cannot be written."""
        if self._record is not None:
            self._record.log(kind, global_step, values)
        self._each_view(f"at step {global_step}", lambda view: view.log(kind, global_step, values))

    def show(self, global_step: int, evaluation: Callable[[], Evaluation]) -> None:
        """Give an evaluation to every view; it is made once, and only where there is one.

        A picture that cannot be drawn does not end the run: one warning for each view names it, and the numbers continue.
        """
        made, when = functools.cache(evaluation), f"at step {global_step}"

        def show(view: TensorBoardTracker | WandbTracker) -> None:
            try:
                view.show(global_step, made())
            except view.errors:
                raise
            except Exception as error:  # whatever drawing raises
                if view.label not in self._undrawn:
                    self._undrawn.add(view.label)
                    log.debug("the failure of %s in full", view.label, exc_info=True)
                    self._warn(
                        f"{view.label} cannot draw the evaluation {when} ({described(error)}): the run still logs its numbers"
                    )

        self._each_view(when, show)

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Close every tracker, once; `warnings` is complete only after this."""
        self._each_view("while finishing", lambda view: view.finish(status, exit_code, summary))
        if self._record is not None:
            self._record.close()

    def _warn(self, text: str) -> None:
        log.warning(text)
        self.warnings.append(text)

    def _each_view(self, when: str, call: Callable[[TensorBoardTracker | WandbTracker], None]) -> None:
        for view in tuple(self._views):
            try:
                call(view)
            except view.errors as error:
                self._views.remove(view)
                view.abandon()
                self._warn(f"{view.label} failed {when} ({message_of(error)}) and was dropped: {view.rescue}")


def open_trackers(
    cfg: Config,
    run_dir: Path,
    *,
    is_main: bool,
    resume_step: int | None,
    wandb_run_id: str | None,
    data: dict[str, Any] | None = None,
) -> Trackers:
    """Open what `cfg.tracking` asks for, in `run_dir`, which exists; on hosts other than rank 0 (`is_main`) nothing.

    Args:
        resume_step: step of the checkpoint that the run resumes from; None = from the beginning, without the metrics that an
            earlier start left in `run_dir`.
        wandb_run_id: the W&B run to continue; None = a new one.
        data: what the run read of the dataset, for the dashboards: trm/data/content.py as plain values.

    Raises UserError for tracking.wandb=online without a usable key, OSError where metrics.jsonl cannot be written.
    """
    trackers = Trackers(wandb_run_id)
    if not is_main:
        return trackers
    mode = choose_wandb_mode(cfg.tracking.wandb, run_dir, trackers._warn)
    trackers._record = JsonlTracker(run_dir / METRICS_FILE, resume_step)
    if cfg.tracking.tensorboard:
        folder = run_dir / "tensorboard"
        try:
            trackers._views.append(TensorBoardTracker(cfg, folder, data, resume_step))
        except TensorBoardTracker.errors as error:
            trackers._warn(f"TensorBoard cannot write to {folder} ({message_of(error)}): {METRICS_FILE} continues")
    if mode != "disabled" and (view := open_wandb(cfg, run_dir, data, mode, wandb_run_id, trackers._warn)):
        trackers.wandb_run_id, trackers.wandb_mode = view.run_id, view.mode
        trackers._views.append(view)
    return trackers
