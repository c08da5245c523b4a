"""TensorBoard: scalars, pictures of held-out puzzles, and the run's row in the HPARAMS table."""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from trm.config import Config
from trm.tracking.labels import labels
from trm.tracking.record import METRICS_FILE, write_whole

if TYPE_CHECKING:
    from trm.tracking.evaluation import Evaluation

# tensorboard is imported where it is used: it costs a second of start-up, and a run without it must not need it.

BEST = "best_exact_accuracy"  # the HPARAMS table's metric
MOST_PICTURED = 2  # puzzles, since drawing takes longest; all of them are in W&B's table


class EventFile:
    """One event file, written by the thread that logs and without a buffer.

    TensorBoard's own writers write in a thread, whose errors reach the interpreter (as a traceback on stderr) before they reach
    the run, and which keeps what it has not yet written when the process is killed. One record a step is quickly written.
    Raises OSError when the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # files of one folder are read in the order of their names
        number = len(list(folder.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{int(time.time()):010d}.{number:04d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._records = RecordWriter(self)
        self._write(0, file_version="brain.Event:2")

    def write(self, content: bytes) -> None:
        """One record, as RecordWriter hands it over."""
        write_whole(self._file, content)

    def hide_from(self, step: int) -> None:
        """Have TensorBoard hide what the folder's earlier files hold of this step and later ones."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, *summaries: Any) -> None:
        """Write Summary messages as records of a step."""
        for summary in summaries:
            self._write(step, summary=summary)

    def close(self) -> None:
        """Close the file; there is nothing left to write."""
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())


class TensorBoardTracker:
    """Event files in a run's folder. Raises OSError when they cannot be written."""

    label = "TensorBoard"
    errors: tuple[type[Exception], ...] = (OSError,)
    rescue = f"{METRICS_FILE} goes on"

    def __init__(self, cfg: Config, folder: Path, resume_step: int | None) -> None:
        """Open an event file; TensorBoard hides what older files hold of the steps after `resume_step` (None = all steps)."""
        self._file = EventFile(folder)
        self._curve: _Curve | None = None  # from the first evaluation on
        self._file.hide_from(0 if resume_step is None else resume_step + 1)
        # Again at every start, which changes nothing: TensorBoard takes the first of a folder. They belong to the run's own folder;
        # SummaryWriter.add_hparams would make a second run of them.
        table, row, self._end = _hparams(cfg)
        self._file.add(0, table, row)

    def log(self, kind: str, global_step: int, values: dict[str, float | int]) -> None:
        """Write one record with a scalar for each value."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in values.items()]
        self._file.add(global_step, Summary(value=scalars))

    def show(self, global_step: int, evaluation: Evaluation) -> None:
        """Write the best accuracy so far, the curve by supervision step, and a contact sheet of each of some puzzles."""
        self.log("eval", global_step, {BEST: evaluation.best_exact_accuracy})
        self._curve = self._curve or _Curve(len(evaluation.by_step))
        self._file.add(global_step, _picture("eval/accuracy_by_supervision_step", self._curve.png(evaluation.by_step)))
        for held_out in evaluation.puzzles[:MOST_PICTURED]:
            self._file.add(global_step, _picture(f"held_out/{held_out.puzzle.name}", held_out.png))

    def finish(self, status: str, exit_code: int, summary: dict[str, Any]) -> None:
        """Close the event file. Only a completed run is marked as ended, since any other may go on."""
        if status == "completed":
            self._file.add(0, self._end)
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is: nothing is held back."""
        self._file.close()


def _hparams(cfg: Config) -> tuple[Any, Any, Any]:
    """Summaries of the HPARAMS table: its columns, this run's row, the end of the run."""
    from torch.utils.tensorboard.summary import hparams

    row = {
        "recursion": labels(cfg).recursion,
        "variant": cfg.recursion.variant,
        "T": cfg.recursion.T,
        "n": cfg.recursion.n,
        "n_sup": cfg.recursion.n_sup,
        "model": f"{cfg.model.mixer} {cfg.model.hidden_size}x{cfg.model.num_layers}",
        "ema": "on" if cfg.ema.enabled else "off",
        "lr": cfg.optimizer.lr,
        "batch": cfg.train.global_batch_size,
        "puzzles": cfg.data.num_puzzles,
        "seed": cfg.seed,
    }
    summaries: tuple[Any, Any, Any] = hparams(row, {f"eval/{BEST}": 0.0})  # type: ignore[no-untyped-call]
    return summaries


def _picture(tag: str, png: bytes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = Image.open(io.BytesIO(png)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


class _Curve:
    """Draws exact and cell accuracy after each supervision step. All but the lines is drawn once, since it takes longest."""

    LINES = (("exact_accuracy", "exact accuracy"), ("accuracy", "cell accuracy"))

    def __init__(self, num_steps: int) -> None:
        figure = Figure(figsize=(6, 3.6), dpi=100, layout="constrained")
        self._canvas, self._axes, self._steps = FigureCanvasAgg(figure), figure.subplots(), range(1, num_steps + 1)
        # left out where all is drawn, and so far with any values: the x axis takes its length from them
        style: dict[str, Any] = {"marker": "o", "markersize": 3, "animated": True}
        self._lines = [self._axes.plot(self._steps, self._steps, label=label, **style)[0] for _, label in self.LINES]
        self._axes.set(xlabel="supervision step", ylabel="%", ylim=(-2, 102))
        self._axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        self._axes.grid(visible=True, alpha=0.4)
        self._axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(self.LINES), frameon=False)
        self._canvas.draw()  # type: ignore[no-untyped-call]
        self._background = self._canvas.copy_from_bbox(figure.bbox)  # type: ignore[no-untyped-call]

    def png(self, by_step: list[dict[str, float]]) -> bytes:
        """The picture of an evaluation's metrics after each supervision step."""
        self._canvas.restore_region(self._background)  # type: ignore[no-untyped-call]
        for line, (name, _) in zip(self._lines, self.LINES, strict=True):
            line.set_data(self._steps, [100 * metrics[name] for metrics in by_step])
            self._axes.draw_artist(line)
        buffer = io.BytesIO()
        pixels = np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        Image.fromarray(pixels).convert("RGB").save(buffer, "PNG")
        return buffer.getvalue()
