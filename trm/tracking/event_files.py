"""TensorBoard: scalars, pictures of held-out puzzles, and the run's row in the HPARAMS table."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from trm.config import Config
from trm.ground.folder import METRICS_FILE
from trm.tracking.labels import labels

if TYPE_CHECKING:
    from trm.tracking.evaluation import Evaluation

# tensorboard is imported where it is used: it costs a second of start-up, and a run without it must not need it.

SHOWN = "eval/exact_accuracy"  # the metric of the HPARAMS table, which takes its last value: the best one was chosen
MOST_PICTURED = 2  # puzzles, since drawing takes longest; W&B's table has all of them


class EventFile:
    """TensorBoard's event file, written where it is asked for; torch's SummaryWriter has a thread that prints a failure itself."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Open a new file in `folder`; TensorBoard hides the steps from `purge_step` on that older files hold."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"  # read in the order of the names
        self._event, self._records = Event, RecordWriter((folder / name).open("ab"))
        self._add(file_version="brain.Event:2")
        self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, summary: Any, step: int) -> None:
        """Add a Summary; it is on disk after the next flush."""
        self._add(summary=summary, step=step)

    def _add(self, **values: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **values).SerializeToString())

    def flush(self) -> None:
        """Hand all that was added to the system."""
        self._records.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._records.close()


class TensorBoardTracker:
    """Event files in a run's folder, on disk as soon as a call returns. Raises OSError when they cannot be written."""

    label = "TensorBoard"
    errors: tuple[type[Exception], ...] = (OSError,)
    rescue = f"{METRICS_FILE} continues"

    def __init__(self, cfg: Config, folder: Path, data: dict[str, Any] | None, resume_step: int | None) -> None:
        """Open an event file; TensorBoard hides what older files hold of the steps after `resume_step` (None = all steps)."""
        from torch.utils.tensorboard.summary import hparams, text

        self._events = EventFile(folder, 0 if resume_step is None else resume_step + 1)
        label, read = labels(cfg, data), dict[str, Any]()
        if data:  # what was read of the dataset, and what tells which runs may be averaged
            read = {"data": f"{data['train_digest'][:8]} {data['test_digest'][:8]}", "test_puzzles": data["test_puzzles"]}
            read |= {"caveats": "; ".join(data["caveats"]) or "none", "settings": label.digest}
        row = {
            "recursion": label.recursion,
            "variant": cfg.recursion.variant,
            "T": cfg.recursion.T,
            "n": cfg.recursion.n,
            "n_sup": cfg.recursion.n_sup,
            "model": f"{cfg.model.mixer} {cfg.model.hidden_size}x{cfg.model.num_layers}",
            "ema": "on" if cfg.ema.enabled else "off",
            "lr": cfg.optimizer.lr,
            "batch": cfg.train.global_batch_size,
            "puzzles": cfg.data.num_puzzles,
            **read,
            "seed": cfg.seed,
        }
        # The columns and the row of the HPARAMS table, and the run's end. Each start writes the first two again, since TensorBoard
        # takes those that come first. SummaryWriter.add_hparams would make a second run of them, beside the folder's own.
        columns, values, self._end = hparams(row, {SHOWN: 0.0})  # type: ignore[no-untyped-call]
        for summary in (columns, values):
            self._events.add(summary, 0)
        if data and data["caveats"]:
            self._events.add(text("data/caveats", "\n\n".join(data["caveats"])), 0)  # type: ignore[no-untyped-call]
        self._events.flush()

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Write a scalar for each value."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in values.items()]
        self._events.add(Summary(value=scalars), global_step)
        self._events.flush()

    def show(self, global_step: int, evaluation: Evaluation) -> None:
        """Write the scores after each supervision step as a curve, and a contact sheet of each of some puzzles."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        by_step, figure = evaluation.by_step, Figure(figsize=(6, 3.6), dpi=100)
        axes = figure.subplots()
        own = [(name, name) for name in evaluation.score_names if all(name in metrics for metrics in by_step)]
        for name, label in (("exact_accuracy", "exact accuracy"), ("accuracy", "cell accuracy"), *own):
            axes.plot(range(1, len(by_step) + 1), [100 * metrics[name] for metrics in by_step], "o-", markersize=3, label=label)
        axes.set(xlabel="supervision step", ylabel="%", ylim=(-2, 102))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.4)
        axes.legend(loc="lower right")
        curve = io.BytesIO()
        figure.savefig(curve, format="png")
        pictures = {"eval/accuracy_by_supervision_step": curve.getvalue()}
        pictures |= {f"held_out/{held_out.puzzle.name}": held_out.png for held_out in evaluation.puzzles[:MOST_PICTURED]}
        for tag, png in pictures.items():
            width, height = Image.open(io.BytesIO(png)).size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
            self._events.add(Summary(value=[Summary.Value(tag=tag, image=image)]), global_step)
        self._events.flush()

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Close the event file. Only a completed run is marked as ended, since any other may be resumed."""
        if status == "completed":
            self._events.add(self._end, 0)
        self._events.close()

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):
            self._events.close()
