"""The loop of trm.train as it is, with its times noted: for `python -m trm.bench host`."""

import contextlib
import time

from trm.cli import compose
from trm.ground.progress import Clock
from trm.ground.signals import StopSignal
from trm.run.experiment import build
from trm.run.record import Outputs, Record
from trm.train import Training


class NotingClock(Clock):
    """A clock that also notes when each call began and ended."""

    def __init__(self):
        super().__init__()
        self.calls = []

    @contextlib.contextmanager
    def calling(self):
        began = time.perf_counter()
        with super().calling():
            yield
        self.calls.append((began, time.perf_counter()))


class NotingTraining(Training):
    """A loop that notes its times; the devices are drained at the end of each call."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.clock = self.noting = NotingClock()
        self.waited_s, self.compile_counts = [], []

    def _enter_stage(self, state, buffers, batch):
        stage, step_function = super()._enter_stage(state, buffers, batch)
        step_function._drain = self._drain
        return stage, step_function

    def _drain(self):
        began = time.perf_counter()
        self.runtime.wait()
        self.compile_counts.append(self.runtime.compile_count())
        self.waited_s.append(time.perf_counter() - began)


def in_the_loop(overrides, folder, warm_up, steps, log_every_steps):
    """Milliseconds of each step, and how often something compiled again."""
    length = ["train.progress=off", f"train.max_steps={warm_up + steps}", f"train.log_every_steps={log_every_steps}"]
    exp = build(compose([*overrides, *length, "train.eval_every_steps=null", "train.checkpoint_every_steps=null"]))
    record, state = Record(), exp.first_state()
    outputs = Outputs(exp, folder, record, state)
    run = NotingTraining(exp, folder, record, outputs, StopSignal())  # nobody asks it to stop
    run.loop(state)
    outputs.close()
    times = {"between calls": [], "call": [], "host": [], "waiting for the device": []}
    for step in range(warm_up, warm_up + steps):
        (began, ended), waited_s = run.noting.calls[step], run.waited_s[step]
        before = run.noting.calls[step - 1][1]
        parts = (began - before, ended - began - waited_s, ended - before - waited_s, waited_s)
        for name, seconds in zip(times, parts, strict=True):
            times[name].append(1e3 * seconds)
    return times, run.compile_counts[-1] - run.compile_counts[warm_up - 1]
