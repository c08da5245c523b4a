"""A puzzle embedding with more rows than a batch: only the batch's rows are touched, in place, to the same bits on any devices."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from golden_cases import load_case
from running import environment, xla_dump

from trm.config import OptimizerConfig
from trm.core.optim import learning_rate, update_puzzle_embedding
from trm.core.step import train_step

PUZZLE = OptimizerConfig(puzzle_emb_lr=1e-2, puzzle_emb_weight_decay=0.1, warmup_steps=4)


def by_one_hot(table, grads, identifiers, step):
    """The update over the whole table, as it is defined."""
    one_hot = (identifiers.unsqueeze(-1) == torch.arange(len(table))).to(table.dtype)
    lr = learning_rate(PUZZLE.puzzle_emb_lr, step, PUZZLE, 100)
    stepped = table * (1 - lr * PUZZLE.puzzle_emb_weight_decay) - lr * torch.sign(one_hot.t() @ grads)
    return torch.where(one_hot.sum(0).unsqueeze(-1) > 0, stepped, table)


@pytest.mark.parametrize("in_place", [False, True])
def test_equal_to_the_update_of_the_whole_table(in_place):
    random = np.random.default_rng(0)
    table = torch.from_numpy(random.normal(size=(50, 6)))
    grads, identifiers = torch.from_numpy(random.normal(size=(24, 6))), torch.from_numpy(random.integers(0, 30, 24)).int()
    step, before = torch.tensor(2.0, dtype=torch.float64), table.clone()
    expected = by_one_hot(table, grads, identifiers, step)
    new = update_puzzle_embedding(PUZZLE, table, grads, identifiers, step, 100, in_place=in_place)
    assert torch.equal(new, expected)
    assert torch.equal(table, expected if in_place else before)
    assert (new.data_ptr() == table.data_ptr()) == in_place


def test_recorded_cases_are_the_same_in_a_larger_table(golden_case):
    case = load_case(golden_case)
    state, buffers = case.state(), case.buffers()
    if state.puzzle_embedding is None:
        pytest.skip("the case has no puzzle embedding")
    table = state.puzzle_embedding
    larger = state._replace(puzzle_embedding=torch.cat([table, torch.ones(50, table.shape[1], dtype=table.dtype)]))
    for i in range(3):
        batch = {name: torch.from_numpy(rows) for name, rows in case.batch(i).items()}
        state, larger = (train_step(case.step_config, each, buffers, batch)[0] for each in (state, larger))
    assert torch.equal(larger.puzzle_embedding[: len(table)], state.puzzle_embedding)
    assert (larger.puzzle_embedding[len(table) :] == 1).all()
    assert all(torch.equal(larger.weights[name], weight) for name, weight in state.weights.items())


STEPS = """
import json, sys
import numpy as np, torch
from trm.backends import start
from trm.cli import compose
from trm.core.metrics import training_names
from trm.core.architecture import architecture
from trm.core.initial import init_buffers
from trm.core.programs import train_program
from trm.core.step import StepConfig, init_state
from trm.run.experiment import on_devices
devices, identifiers, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
cfg = compose(["recipe=tiny", "data=sudoku_4x4", "run_name=x", "hardware=cpu_mesh", f"hardware.devices_per_host={devices}",
    "hardware.dtype=float64", "train.global_batch_size=16", "recursion=t2_n2", "model.puzzle_emb_ndim=64",
    "model.puzzle_emb_len=2"])
runtime = start(cfg.hardware)
arch = on_devices(architecture(cfg, seq_len=16, vocab_size=6, num_puzzle_identifiers=identifiers), runtime)
buffers, random = init_buffers(arch, 0), np.random.default_rng(0)
state = init_state(cfg, arch, buffers)._replace(puzzle_embedding=torch.from_numpy(random.normal(size=(identifiers, 64))))
step = runtime.compile(*train_program(StepConfig(arch, cfg.optimizer, cfg.ema.rate, 100)))
state = runtime.replicate(state._replace(carry=None))._replace(carry=runtime.shard(state.carry))
sums = runtime.replicate(torch.zeros(len(training_names()), dtype=torch.float64))
for _ in range(3):
    batch = {name: random.integers(1, 6, (16, 16)).astype(np.int32) for name in ("inputs", "labels")}
    batch |= {"puzzle_identifiers": random.integers(0, 12, 16).astype(np.int32), "min_steps": np.zeros(16, np.int32)}
    state, sums = step((state, sums), runtime.replicate(buffers), runtime.shard_batch(batch))
np.save(out, runtime.fetch(state.puzzle_embedding).numpy())
"""


@pytest.mark.long
def test_the_compiled_step_touches_the_batchs_rows_alone(tmp_path):
    """On one device and a mesh of 8: the same bits, those of a small table too, and no all-gather or copy of the table."""
    tables = {}
    for devices, identifiers in ((1, 16), (1, 1000), (8, 1000)):
        dump, out = tmp_path / f"dump_{devices}_{identifiers}", tmp_path / f"{devices}_{identifiers}.npy"
        argv = [sys.executable, "-c", STEPS, str(devices), str(identifiers), str(out)]
        subprocess.run(argv, env=environment(XLA_FLAGS=xla_dump(dump)), check=True, capture_output=True, timeout=240)
        tables[devices, identifiers] = np.load(out)
        if identifiers == 1000:
            module = max((p.read_text() for p in dump.glob("*SyncTensorsGraph*after_optimizations.txt")), key=len)
            made = re.findall(r"%(\S+) = f64\[1000,64\]\S* ([\w-]+)\(", module)
            assert {operation for _, operation in made} <= {"parameter", "scatter", "fusion", "call"}, made
            assert len({name for name, operation in made if operation == "scatter"}) == 1
            assert not re.search(r"f64\[1000,64\]\S* (all-gather|all-reduce|copy|all-to-all|collective-permute)\(", module)
            table = re.search(r"entry_computation_layout=\{\((.*?)\)->", module.splitlines()[0])[1].split(", ")
            number = [i for i, text in enumerate(re.findall(r"\w+\[[\d,]*\]", ", ".join(table))) if text == "f64[1000,64]"]
            assert re.search(rf"\({number[0]}, \{{\}}, may-alias\)", module.splitlines()[0]), "the table's memory is not used again"
    assert np.array_equal(tables[1, 1000], tables[8, 1000])
    first = np.random.default_rng(0).normal(size=(1000, 64))
    changed = (tables[1, 1000] != first).any(axis=1)
    assert changed[:12].any()
    assert not changed[12:].any()
