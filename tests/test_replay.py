"""hardware.step_graph: the training step recorded once and replayed (trm/backends/replay.py); here without a GPU."""

import numpy as np
import pytest
import running
import torch
import torch.utils._pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from trm.backends import native, replay, start
from trm.backends.replay import WARM_UP, Replayed
from trm.cli import compose
from trm.config import HardwareConfig
from trm.core.flops import train_arguments
from trm.core.initial import init_buffers
from trm.core.programs import train_program
from trm.core.step import init_state
from trm.errors import ConfigError, RunFailure
from trm.plan.workload import architecture_of, step_config
from trm.run.checkpoint import find_checkpoints, load_checkpoint
from trm.run.experiment import on_devices

TINY = ["run_name=r", "data=sudoku_4x4", "recipe=tiny", "recursion=t2_n2", "model.hidden_size=16", "train.global_batch_size=4"]
# Every update rule, and what draws random numbers, halts, averages or clips
EXPERIMENTS = ["demo_4x4", "wta_sudoku", "eqr_sudoku", "urm_sudoku", "paper_act"]


class OnMetaAlone(TorchDispatchMode):
    """Notes every operator that makes or reads a tensor of the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type != "meta" for tensor in tensors):
            self.found.append(str(func))
        return result


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_step_asks_the_host_for_nothing(experiment):
    """A recording cannot wait for the host or take a number from it: with tensors that have no values this shows on a CPU."""
    cfg = compose([f"experiment={experiment}", *TINY])
    arguments = train_arguments(cfg, architecture_of(cfg))
    with OnMetaAlone() as seen:
        train_program(step_config(cfg), in_place=True).function(*arguments)
    assert not seen.found


def test_what_comes_from_the_host_is_noted():
    with OnMetaAlone() as seen:
        torch.empty((), device="meta") + torch.ones(())
    assert "aten.add.Tensor" in seen.found


def recorded_and_plain(cfg, steps, runtime=None):
    """States after so many steps of the training step, replayed and as it is, on random cells; on a CPU what is recorded is run."""
    arch = architecture_of(cfg) if runtime is None else on_devices(architecture_of(cfg), runtime)
    buffers = init_buffers(arch, cfg.seed)
    program = train_program(step_config(cfg), in_place=True)
    recordings, put = [], runtime.replicate if runtime else lambda tree: tree

    def record(work):
        recordings.append(work)
        return work if runtime is None else replay.cuda_graph(work)

    found = []
    for function in (Replayed(program.function, program.donate, record), program.function):
        random = np.random.default_rng(0)
        current = put((init_state(cfg, arch, buffers), torch.zeros(train_arguments(cfg, arch)[0][1].shape)))
        for step in range(steps):
            shape = (cfg.train.global_batch_size, arch.seq_len)
            cells = torch.from_numpy(random.integers(1, arch.vocab_size, shape, dtype=np.int32))
            nothing = torch.zeros(shape[0], dtype=torch.int32)
            batch = {"inputs": cells, "labels": cells.clone(), "puzzle_identifiers": nothing, "min_steps": nothing.clone()}
            if step == WARM_UP + 2:
                current = current[0], torch.zeros_like(current[1])  # as after a log
            current = function(current, put(buffers), put(batch))
        found.append(current)
    assert len(recordings) == 1
    return found


@pytest.mark.parametrize("overrides", [["experiment=fast_sudoku"], ["experiment=demo_4x4"], ["train.trainable=puzzle_embedding"]])
def test_a_replayed_step_is_the_step(overrides):
    """Run again with the same memory: each batch is taken, the state goes on, sums that were set to zero are."""
    table = ["model.puzzle_emb_ndim=16", "model.puzzle_emb_len=1", "model.registers=0"]
    cfg = compose([*overrides, *TINY, *table, "recursion.n_sup=3"])
    replayed, plain = recorded_and_plain(cfg, WARM_UP + 5)
    for ours, reference in zip(pytree.tree_leaves(replayed), pytree.tree_leaves(plain), strict=True):
        assert torch.equal(ours, reference)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("experiment", ["fast_sudoku", "demo_4x4", "paper_act"])
def test_a_replayed_step_is_the_step_on_a_gpu(experiment, backend):
    torch._dynamo.reset()
    runtime = start(HardwareConfig(name="gpu", backend=backend, platform="cuda"))
    replayed, plain = recorded_and_plain(compose([f"experiment={experiment}", *TINY]), WARM_UP + 5, runtime)
    for ours, reference in zip(pytree.tree_leaves(replayed), pytree.tree_leaves(plain), strict=True):
        torch.testing.assert_close(ours, reference)


def test_a_run_with_a_replayed_step_is_the_run(tmp_path, monkeypatch):
    """Logs, evaluations, checkpoints and the stages of a curriculum read and replace what is replayed."""
    curriculum = "recursion.curriculum=[{until: 0.5, T: 1, n: 1}]"
    settings = [*running.TINY, *TINY, curriculum, "train.max_steps=10", "train.log_every_steps=3", "train.eval_every_steps=4"]
    running.run(tmp_path, "trm.train", *settings)
    compiled = []

    def compile(self, function, rows=None, donate=None):
        if donate is None:
            return function
        compiled.append(Replayed(function, donate, lambda work: work))
        return compiled[-1]

    monkeypatch.setattr(native.NativeRuntime, "compile", compile)
    # as from another device: what is fetched is a copy
    monkeypatch.setattr(native.NativeRuntime, "fetch", lambda self, tree: native.map_tensors(torch.clone, tree))
    (tmp_path / "replayed").mkdir()
    running.run(tmp_path / "replayed", "trm.train", *settings)
    assert [step._replay is not None for step in compiled] == [True, True]
    plain, replayed = (
        load_checkpoint(find_checkpoints(folder / "outputs" / "r")[0])[0] for folder in (tmp_path, tmp_path / "replayed")
    )
    assert plain.keys() == replayed.keys()
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda pair, more: (pair[1], pair[0] + more), ((10, 2), (2, 11), (11, 3), (3, 12), (12, 4))),
        (lambda pair, more: (pair[1] + more, pair[0]), ((11, 1), (2, 11), (12, 2), (3, 12), (13, 3))),
    ],
)
def test_results_that_are_each_others_memory(function, expected):
    """Whichever of them is written first."""
    swap = Replayed(function, 0, lambda work: work)
    pair = torch.tensor(1.0), torch.tensor(10.0)
    for values in expected:
        pair = swap(pair, torch.tensor(1.0))
        assert tuple(map(float, pair)) == values


def test_what_cannot_be_recorded_is_said_in_one_line():
    def record(work):
        raise RuntimeError("operation not permitted when stream is capturing\nand a traceback")

    step = Replayed(lambda state: state + 1, 0, record)
    for _ in range(WARM_UP):
        step(torch.zeros(()))
    with pytest.raises(RunFailure, match=r"\(operation not permitted when stream is capturing\): set hardware.step_graph=false$"):
        step(torch.zeros(()))


def test_only_on_cuda_where_it_is_asked_for(monkeypatch):
    with pytest.raises(ConfigError, match=r"hardware\.step_graph=true"):
        compose(["run_name=r", "hardware.step_graph=true"])
    assert compose(["run_name=r", "hardware=gpu", "hardware.step_graph=true"]).hardware.step_graph
    monkeypatch.setattr(native, "_keep_freed_memory", lambda: None)

    def step(state):
        return state + 1

    assert start(HardwareConfig(name="cpu", backend="eager")).compile(step, donate=0) is step
    on_gpu = native.NativeRuntime(HardwareConfig(name="gpu", backend="eager", platform="cuda", step_graph=True))
    assert isinstance(on_gpu.compile(step, donate=0), replay.Replayed)
    assert on_gpu.compile(step) is step  # an evaluation's
    assert native.NativeRuntime(HardwareConfig(name="gpu", backend="eager", platform="cuda")).compile(step, donate=0) is step
