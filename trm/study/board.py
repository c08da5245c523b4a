"""The progress of a sweep's jobs: a live table on a terminal, and a line every quarter of a minute elsewhere."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trm.config import total_steps
from trm.data.format import read_metadata
from trm.ground.folder import METRICS_FILE, read_summary
from trm.run.ahead import words
from trm.show.table import printable
from trm.study.sweep import Job

log = logging.getLogger(__name__)

LINE_EVERY_S, LOOK_EVERY_S = 15.0, 1.0
TAIL_BYTES = 20_000


@dataclass
class Row:
    """One job as its folder shows it."""

    name: str
    total: int | None  # steps to the end; None where they depend on a dataset that is not read here
    score_name: str
    metrics: Path
    state: str = "waiting"
    step: int = 0
    score: float | None = None  # of the last evaluation, from 0 to 1
    first: tuple[float, int] | None = None  # clock and step at its first progress, from which the pace is measured

    def look(self, now: float) -> None:
        """Read the end of the run's log."""
        if not self.metrics.exists():
            return
        with self.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            whole = file.read().rpartition(b"\n")[0].splitlines()
        rows = [json.loads(line) for line in whole if line.startswith(b"{")]
        if rows and rows[-1]["global_step"] != self.step:
            self.step, self.state = rows[-1]["global_step"], "running"
            self.first = self.first or (now, self.step)
        self.score = next(
            (row[self.score_name] for row in reversed(rows) if row.get(self.score_name) is not None and row["kind"] == "eval"),
            self.score,
        )

    def cells(self, now: float) -> tuple[str, str, str, str, str]:
        """Job, state, steps, the time left at the pace so far (evaluations included), last score."""
        score = "" if self.score is None else f"{100 * self.score:.1f} %"
        steps, left = f"{self.step:,}" if self.total is None else f"{self.step:,} / {self.total:,}", ""
        if self.state == "running" and self.total is not None and self.first is not None and self.step > self.first[1]:
            left = words((now - self.first[0]) * (self.total - self.step) / (self.step - self.first[1]))
        return printable(self.name), self.state, steps, left, score


class Board:
    """The jobs of a sweep while they run. The launcher says when one starts and ends; the rest is read from their folders."""

    def __init__(self, sweep_dir: Path, jobs: Sequence[Job]) -> None:
        self.rows: dict[str, Row] = {}
        for job in jobs:
            data, total, best_by = Path(job.cfg.data.path), job.cfg.train.max_steps, job.cfg.evaluate.best_by
            if total is None and job.cfg.train.max_flops is None and (data / "train").exists():
                total = total_steps(job.cfg, read_metadata(data, "train").total_groups)
            score, summary = "exact_accuracy" if best_by == "exact" else best_by, read_summary(sweep_dir / job.dir) or {}
            metrics = sweep_dir / job.dir / METRICS_FILE
            self.rows[job.dir] = Row(job.dir, total, score, metrics, step=summary.get("steps") or 0)
        self._live: Live | None = None
        self._looked = self._told = time.monotonic()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while entered, where stderr is a terminal; log lines and prints go above it."""
        if not sys.stderr.isatty():
            yield
            return
        live = Live(self._table(), console=Console(stderr=True), auto_refresh=False, redirect_stdout=True)
        with live as self._live, contextlib.ExitStack() as stack:
            for handler in logging.getLogger().handlers:  # the table has put another stream in the place of stderr
                if type(handler) is logging.StreamHandler and (before := handler.setStream(sys.stderr)) is not None:
                    stack.callback(handler.setStream, before)
            yield
            self._look()
        self._live = None

    def started(self, name: str, state: str = "running") -> None:
        """A job's process was started, or waits in a queue: `state` says so until it logs."""
        self.rows[name].state = state

    def ended(self, name: str) -> None:
        """A job's process has ended: its summary says how."""
        row = self.rows[name]
        self._look()
        row.state = (read_summary(row.metrics.parent) or {}).get("status", "ended")
        self._look()

    def poll(self) -> None:
        """Show what is new, where it is time to; cheap, to be called often."""
        now = time.monotonic()
        if self._live is not None and now - self._looked >= LOOK_EVERY_S:
            self._look()
        elif self._live is None and now - self._told >= LINE_EVERY_S:
            self._told = now
            self._look()
            parts = []
            for name, state, steps, left, score in (row.cells(now) for row in self.rows.values()):
                if state == "running":
                    parts.append(", ".join(filter(None, [f"{name} {steps}", left and f"{left} left", score])))
            log.info("%s", "; ".join(parts) or "no job is running")

    def _look(self) -> None:
        self._looked = time.monotonic()
        for row in self.rows.values():
            if row.state != "waiting":
                row.look(self._looked)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        scores = {row.score_name.removesuffix("_accuracy") for row in self.rows.values()}
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("job", "", "step", "left", " or ".join(sorted(scores))):
            table.add_column(title, justify="left" if title in ("job", "") else "right", no_wrap=True)
        for row in self.rows.values():
            table.add_row(*(Text(cell) for cell in row.cells(time.monotonic())))
        return table
