"""One rank of tests/test_ranks.py: `python ranks_worker.py FOLDER [all|CASE-DTYPE|compiled|resumed|runs ...]`, as by torchrun.

Every case is computed by all ranks together and by one rank alone, which compares the two. What it finds is FOLDER/RANK.json.
"""

import functools
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.utils._pytree as pytree
from golden_cases import load_case
from ranks_runs import RUNS, all_runs, resumed
from running import TINY

from trm.backends import start
from trm.backends.native import NativeRuntime
from trm.backends.ranks import RankShare
from trm.cli import compose
from trm.config import HardwareConfig
from trm.core.architecture import architecture
from trm.core.initial import init_buffers, init_puzzle_embedding, init_weights
from trm.core.metrics import named, training_names
from trm.core.step import StepConfig, init_state, train_step
from trm.ground.rank import process_rank
from trm.inference.evaluator import EvaluationStopped, make_evaluator
from trm.run.experiment import on_devices
from trm.tasks.base import task_of

STEPS = 10
GOLDEN = ("mlp_prefix", "attention_rope", "urm_conv", "eqr_damped_mlp")
SMALL = ["model.hidden_size=32", "model.num_heads=2", "model.num_layers=1", "recursion.T=2", "recursion.n=1", "ema.rate=0.9"]
TABLE = ["model.puzzle_emb_ndim=32", "model.puzzle_emb_len=1"]
SETTINGS = {
    "act": ["recursion.act_continue=true"],
    "random": ["recursion={damping:0.95,noise:0.05}", "latents.init=random"],
    "winner_takes_all": ["latents={init:random,num_hypotheses:2}", "recursion.noise=0.05"],
    "supervision_decay": ["recursion.supervision_decay=0.9", "optimizer.clip_grad_norm=0.1", "optimizer.schedule=cosine"],
    "muon": ["optimizer=muon"],
    "large_table": TABLE,
    "table_alone": [*TABLE, "train.trainable=puzzle_embedding"],
    "attention": ["model={mixer:attention,positions:rope,registers:1}"],
    "multi_scale_z": ["recursion.variant=multi_scale_z"],
}
WAYS = {
    "standard": [],
    "votes": ["inference=votes8"],
    "guided": ["inference=guided", "inference.rollouts=3", "inference.supervision_steps=4"],
    "early_exit": ["inference.early_exit=true"],
    "race": ["inference=halt_first", "inference.copies=2"],
}
FEW_WAYS = ("guided", "race")  # where not all cases are asked for


def started(dtype, count, backend="eager"):
    kinds = {"cpu_ranks": count, "cpu": 1}
    return [start(HardwareConfig(name=name, backend=backend, dtype=dtype, num_devices=n)) for name, n in kinds.items()]


class Part(RankShare):
    """One of several shares in one process: what gloo adds up for ranks is added up here, in the order of the shares."""

    def __init__(self, index, given, barrier):
        super().__init__(index, len(given))
        self.given, self.barrier = given, barrier

    def total(self, flat):
        self.given[self.index] = flat
        self.barrier.wait(60)
        total = functools.reduce(torch.add, self.given)
        self.barrier.wait(60)  # nobody gives the next before all have read these
        return total


def at_once(count, work):
    """`work(share)` of so many shares, each in a thread of its own."""
    given, barrier = [None] * count, threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda index: work(Part(index, given, barrier)), range(count)))


def own(runtime, tree):
    """This rank's rows of a tree of the global batch."""

    def part(rows):
        size = len(rows) // runtime.process_count
        return rows[runtime.process_index * size : (runtime.process_index + 1) * size]

    return pytree.tree_map(part, tree)


def trained(runtime, cfg, state, buffers, batches):
    """The last state and what each step says of the batch, on the host."""
    step = runtime.compile(functools.partial(train_step, cfg), lambda results: results[0].carry)
    state = runtime.replicate(state._replace(carry=None))._replace(carry=runtime.shard(own(runtime, state.carry)))
    buffers, said = runtime.replicate(buffers), []
    for batch in batches:
        state, out = step(state, buffers, runtime.shard_batch(own(runtime, batch)))
        said.append(runtime.fetch((out.loss, out.sums)))
    return runtime.fetch(state), said


def golden(name, dtype):
    """(runtime) -> the arguments of `trained`: rows of two steps at once, so that four ranks divide them."""

    def make(runtime):
        case = load_case(Path(__file__).parent / "golden" / name, dtype=dtype, runtime=runtime, attention="scores")
        halves = [[case.batch((step + shift) % STEPS) for step in range(STEPS)] for shift in (0, 3)]
        batches = [{key: np.concatenate([one[key], two[key]]) for key in one} for one, two in zip(*halves, strict=True)]
        state = case.state()
        carry = pytree.tree_map(lambda rows: torch.cat([rows, rows]), state.carry)
        return case.step_config, state._replace(carry=carry), case.buffers(), batches

    return make


def composed(overrides, dtype):
    def make(runtime):
        cfg = compose([*TINY, *SMALL, f"hardware.dtype={str(dtype).removeprefix('torch.')}", "run_name=r", *overrides])
        rows, identifiers, draw = 8, 40 if cfg.model.puzzle_emb_ndim else 1, np.random.default_rng(0)
        cfg.train.global_batch_size = rows
        arch = on_devices(architecture(cfg, seq_len=16, vocab_size=6, num_puzzle_identifiers=identifiers), runtime)
        buffers = init_buffers(arch, 0)
        tokens = draw.integers(1, 6, (2, STEPS, rows, 16), dtype=np.int32)
        batches = [
            {
                "inputs": tokens[0, step],
                "labels": tokens[1, step],
                "puzzle_identifiers": draw.integers(0, identifiers, rows, dtype=np.int32),
                "min_steps": draw.integers(0, 3, rows, dtype=np.int32),
            }
            for step in range(STEPS)
        ]
        step = StepConfig(arch, cfg.optimizer, 0.9, STEPS, 0, cfg.train.trainable)
        state = init_state(cfg, arch, buffers)
        # halting as after some training: some rows halt, others do not
        state.weights["q_head.bias"].fill_(0)
        state.weights["q_head.weight"].copy_(torch.linspace(-0.5, 0.5, 2 * cfg.model.hidden_size).view(2, -1))
        return step, state, buffers, batches

    return make


def difference(ours, alone):
    """The largest difference of any tensor, as a share of its largest value."""
    found = 0.0
    for one, other in zip(pytree.tree_leaves(ours), pytree.tree_leaves(alone), strict=True):
        if one is not None:
            scale = other.double().abs().max().clamp_min(1e-30)
            found = max(found, float((one.double() - other.double()).abs().max() / scale))
    return found


def nudged(state):
    """The state with each weight moved by its last bit: how far apart rounding alone drives a run."""
    return state._replace(weights={name: w * (1 + torch.finfo(w.dtype).eps) for name, w in state.weights.items()})


def in_parts(make, count):
    """What one process computes that adds up so many parts of every batch: the last state without rows, and what each step says."""

    def work(share):
        runtime = NativeRuntime(HardwareConfig(name="cpu", backend="eager"))
        runtime.process_index, runtime.process_count, runtime.share = share.index, share.count, share
        state, said = trained(runtime, *make(runtime))
        return state._replace(carry=None), said

    return at_once(count, work)[0]


def compare(name, make, together, alone, mine):
    """Differences of the training by all ranks to that of one process: of what is said of the batch, weights, and latents."""
    before = together.share.exchanges, together.share.bytes
    state, said = trained(together, *make(together))
    exchanges, size = (after - start for after, start in zip((together.share.exchanges, together.share.bytes), before, strict=True))
    if not mine:
        return {}
    cfg, start_state, buffers, batches = make(alone)
    one, one_said = trained(alone, cfg, start_state, buffers, batches)
    moved, _ = trained(alone, cfg, nudged(start_state), buffers, batches)
    halves = in_parts(make, 2) if together.process_count == 2 else None
    kept, kept_alone, kept_moved = (each._replace(carry=None) for each in (state, one, moved))
    return {
        name: {
            "first_step": difference(said[0], one_said[0]),
            "said": difference(said, one_said),
            "state": difference(kept, kept_alone),
            "latents": difference(state.carry, one.carry),
            "rounding": difference(kept_moved, kept_alone),
            "in_halves": halves and difference((kept, said), halves),
            "halted": sum(named(training_names(), sums)["count"] for _, sums in said),
            "exchanges": exchanges,
            "bytes": size,
        }
    }


def compiled(count):
    """How far three float32 steps of ranks whose blocks inductor compiled are from those of eager ranks, and what rounding does."""
    make = composed(["model={mixer:attention,positions:rope}"], torch.float32)
    eager, inductor = (started("float32", count, backend)[0] for backend in ("eager", "inductor"))

    def three_steps(runtime, change=lambda state: state):
        cfg, state, buffers, batches = make(runtime)
        state, said = trained(runtime, cfg, change(state), buffers, batches[:3])
        return state._replace(carry=None), said

    plain, moved, ours = three_steps(eager), three_steps(eager, nudged), three_steps(inductor)
    return {"difference": difference(ours, plain), "rounding": difference(moved, plain), "graphs": inductor.compile_count()}


def left(evaluator, weights, table, stop):
    """Whether an evaluation is left before its end."""
    try:
        evaluator.run(weights, table, stop)
    except EvaluationStopped:
        return True
    return False


def evaluations(together, alone, folder, ways):
    """Whether all ranks find in an evaluation what one process does, and leave it where one is asked to, by way of inference."""
    found = {}
    for name in ways:
        sizes = [f"data.path={folder}/data", "evaluate.batch_size=24", "evaluate.max_puzzles=12"]
        cfg = compose([*TINY, *SMALL, "hardware.dtype=float64", "run_name=r", *sizes, *WAYS[name]])
        plain = architecture(cfg, **task_of(cfg.data).facts.sizes)
        results, trained_as = [], (init_weights(plain, 0), init_puzzle_embedding(plain))
        for runtime in (together, alone):
            evaluator = make_evaluator(cfg, runtime, on_devices(plain, runtime), init_buffers(plain, 0))
            results.append(evaluator.run(*trained_as))
            if runtime is together:
                stopped = left(evaluator, *trained_as, lambda: together.process_index == 1)
        ours, one = results
        pairs = [(ours.final[key], one.final[key]) for key in one.final]
        same_samples = ours.samples.to_json() == one.samples.to_json()
        found[name] = {"difference": max(abs(a - b) for a, b in pairs), "samples": same_samples, "count": ours.final["count"]}
        found[name] |= {"stopped": stopped}
    return found


def spoiled(together):
    """Steps with a loss that is not finite, as each rank counts them, where one rank alone has such rows."""
    cfg, state, buffers, batches = composed([], torch.float64)(together)
    if together.process_index == 1:
        latents = {z: torch.full_like(rows, torch.nan) for z, rows in state.carry.latents.items()}
        state = state._replace(carry=state.carry._replace(latents=latents, halted=torch.zeros_like(state.carry.halted)))
    _, said = trained(together, cfg, state, buffers, batches[:1])
    return named(training_names(), said[0][1])["nonfinite_steps"]


def figures(folder, rank, count, only):
    """What training and evaluations by all ranks come to beside those by one."""
    found = {"training": {}}
    for dtype in ("float64", "float32"):
        together, alone = started(dtype, count)
        makes = {name: golden(name, getattr(torch, dtype)) for name in GOLDEN}
        if dtype == "float64":
            makes |= {name: composed(overrides, torch.float64) for name, overrides in SETTINGS.items()}
        wanted = {case: make for name, make in makes.items() if (case := f"{name}-{dtype}") in only or "all" in only}
        for number, (case, make) in enumerate(wanted.items()):
            found["training"] |= compare(case, make, together, alone, number % count == rank)
        if dtype == "float64":
            found |= {
                "spoiled": spoiled(together),
                "evaluation": evaluations(together, alone, folder, WAYS if "all" in only else FEW_WAYS),
            }
    return found


def main(folder, *asked):
    torch.set_num_threads(1)
    rank, count = process_rank()
    others = {
        "compiled": lambda: compiled(count),
        "resumed": lambda: all_runs(Path(folder), rank, [resumed]),
        "runs": lambda: all_runs(Path(folder), rank, RUNS),
    }
    only = [name for name in asked if name not in others]
    found = figures(folder, rank, count, only) if only else {}
    found |= {name: work() for name, work in others.items() if name in asked}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
