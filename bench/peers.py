"""The training and the evaluation step beside those of other implementations, from checkouts that the user has.

--reference DIR  the released code of the paper (github.com/SamsungSAILMontreal/TinyRecursiveModels), eager and compiled as it does
--nano DIR       nano-trm (github.com/olivkoch/nano-trm), eager, as it runs on a CPU

All get the same batches, sizes and number format (hardware.dtype), each in a process of its own, measured in turns. Each trains as
its own code does: the released code with its EMA and its optimizers, of which AdamATan2 comes from tests/ordinary.py where its
package, which is for GPUs, is not installed; nano-trm with what it chooses there, and without its EMA, which is a callback of its
trainer. A sample is one row in one supervision step.
"""

import contextlib
import importlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import step
from bench.machine import Row, Worker, median_and_spread, tests_module, turns, until_stopped
from trm.cli import compose
from trm.errors import UserError
from trm.plan.workload import architecture_of
from trm.run.experiment import Experiment, build

SIZES = {
    "4x4": step.SIZES["demo"],
    "6x6": ["data=sudoku_6x6", "model=tiny", "model.hidden_size=128", "recursion=t3_n6", "train.global_batch_size=64"],
    "paper_mlp": step.SIZES["paper_mlp"],
}
CHECKOUTS = {"reference": "models/recursive_reasoning/trm.py", "nano": "src/nn/models/trm.py"}  # a file that tells each
HERE, REFERENCE, COMPILED, NANO = "here", "released", "released, compiled", "nano-trm"
ROUNDS = 5


def measure(overrides: list[str], sizes: Sequence[str], rounds: int, reference: Path | None, nano: Path | None) -> Iterator[Row]:
    """Rows for every size, kind of step and implementation; ratios are of the same round."""
    given = {name: path for name, path in (("reference", reference), ("nano", nano)) if path is not None}
    if not given:
        raise UserError("peers needs --reference DIR or --nano DIR, a checkout each: `python -m trm.bench` says of what")
    for name, path in given.items():
        if not (path / CHECKOUTS[name]).is_file():
            raise UserError(f"--{name} {path}: no such checkout, {CHECKOUTS[name]} is missing there")
    ways: dict[str, Path | None] = {HERE: None}
    if nano is not None:
        ways[NANO] = nano.resolve()
    if reference is not None:
        ways |= {REFERENCE: reference.resolve(), COMPILED: reference.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        for size in turns(sizes, "sizes"):
            yield from _size(size, [*step.COMMON, *SIZES[size], *overrides, f"data.path={folder}/{size}"], ways, rounds)


def _size(size: str, overrides: list[str], ways: dict[str, Path | None], rounds: int) -> list[Row]:
    cfg = compose(overrides)
    build(compose([*overrides, "hardware.backend=eager"]))  # the data, once
    workers = {way: Worker() for way in ways}
    seconds: dict[tuple[str, str], list[float]] = {(way, kind): [] for kind in step.KINDS for way in ways}
    with contextlib.ExitStack() as stack, until_stopped():
        for worker in workers.values():
            stack.callback(worker.close)
        steps: dict[tuple[str, str], int] = {}
        for way, worker in workers.items():
            try:
                first = worker.call(prepare, overrides, way, ways[way])
            except ImportError as error:
                raise UserError(f"{way}: {error}: install what its requirements ask for") from error
            steps |= {(way, kind): max(1, round(step.BLOCK_S / a_step)) for kind, a_step in first.items()}
        for _ in turns(range(rounds), f"{size}: rounds"):
            found = {pair: workers[pair[0]].call(step.block, pair[1], steps[pair]) for pair in seconds}
            for pair, measured in found.items():
                seconds[pair].append(measured)
    if not all(seconds.values()):
        return []  # stopped before the first round was whole
    rows_of = {"train": cfg.train.global_batch_size, "eval": cfg.eval_batch_size}
    rows = []
    for kind, way in itertools.product(step.KINDS, ways):
        rates = [rows_of[kind] / s for s in seconds[way, kind]]
        row: Row = {"size": size, "step": kind, "way": way, "version": version(ways[way]), "dtype": cfg.hardware.dtype}
        row |= {"tokens": architecture_of(cfg).num_tokens, "batch": rows_of[kind], "samples/s": median_and_spread(rates)["median"]}
        ratios = [other / own for own, other in zip(seconds[HERE, kind], seconds[way, kind], strict=True)]
        row["here / this"] = median_and_spread(ratios)["median"]
        rows.append(row | {"all samples/s": rates})
    return rows


def version(checkout: Path | None) -> str:
    """The revision of a checkout; of this project's None."""
    where = [] if checkout is None else ["-C", str(checkout)]
    done = subprocess.run(["git", *where, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no git"


# ---------------------------------------------------------------------------------------------------- inside a way's process


def prepare(overrides: list[str], way: str, checkout: Path | None) -> dict[str, float]:
    """Build and warm up an implementation in this process; returns seconds of a step of each kind. Then call `step.block`."""
    if checkout is None:
        return step.prepare(overrides, step.CONFIGURED, compose(overrides).hardware.backend)
    sys.path.insert(0, str(checkout))
    exp = build(compose([*overrides, "hardware.backend=eager"]))
    with torch.device(exp.cfg.hardware.platform), contextlib.redirect_stdout(sys.stderr):
        programs = _nano(exp) if way == NANO else _released(exp, way == COMPILED)
    step.hold(programs)
    return {kind: [programs.block(kind, 1) for _ in range(2)][-1] for kind in step.KINDS}


def _batches(exp: Experiment, names: dict[str, str]) -> tuple[Callable[[], Any], Any]:
    """Training batches in turns, and one for evaluation, with the keys that an implementation gives them."""

    def named(batch: dict[str, Any]) -> dict[str, Any]:
        return {theirs: batch[ours] for ours, theirs in names.items()}

    training = itertools.cycle([named(exp.runtime.shard_batch(exp.host_batch(i))) for i in range(step.NUM_BATCHES)])
    evaluation = named(exp.runtime.shard_batch(step.full_batch(exp)))
    return lambda: next(training), evaluation


def _released(exp: Experiment, compiled: bool) -> step.Programs:
    network = importlib.import_module("models.recursive_reasoning.trm")
    losses, sparse = importlib.import_module("models.losses"), importlib.import_module("models.sparse_embedding")
    cfg, arch = exp.cfg, exp.arch
    model, recursion, optimizer = cfg.model, cfg.recursion, cfg.optimizer
    settings = {
        "batch_size": cfg.train.global_batch_size,
        **{"seq_len": arch.seq_len, "vocab_size": arch.vocab_size, "num_puzzle_identifiers": arch.num_puzzle_identifiers},
        **{"H_cycles": recursion.T, "L_cycles": recursion.n, "H_layers": 0, "L_layers": model.num_layers},
        **{"hidden_size": model.hidden_size, "num_heads": model.num_heads, "expansion": model.expansion},
        **{"puzzle_emb_ndim": model.puzzle_emb_ndim, "puzzle_emb_len": model.prefix_len, "mlp_t": model.mixer == "mlp"},
        "pos_encodings": model.positions,
        **{"halt_max_steps": recursion.n_sup, "halt_exploration_prob": recursion.halt_exploration_prob, "no_ACT_continue": True},
        "forward_dtype": cfg.hardware.dtype,
    }
    plain = losses.ACTLossHead(network.TinyRecursiveReasoningModel_ACTV1(settings), f"{model.loss}_cross_entropy")
    head: Any = torch.compile(plain) if compiled else plain
    betas = (optimizer.beta1, optimizer.beta2)
    optimizers: list[Any] = [_adam_atan2(cfg.hardware.platform)(plain.parameters(), optimizer.lr, betas, optimizer.weight_decay)]
    if model.puzzle_emb_ndim:
        table = plain.model.puzzle_emb.buffers()
        how = {"lr": optimizer.puzzle_emb_lr, "weight_decay": optimizer.puzzle_emb_weight_decay, "world_size": 1}
        optimizers.append(sparse.CastedSparseEmbeddingSignSGD_Distributed(table, **how))
    average = importlib.import_module("models.ema").EMAHelper(cfg.ema.rate) if cfg.ema.enabled else None
    if average is not None:
        average.register(plain)
    keys = ("inputs", "labels", "puzzle_identifiers")
    next_batch, held_out = _batches(exp, dict(zip(keys, keys, strict=True)))
    carries = {"train": plain.initial_carry(next_batch()), "eval": plain.initial_carry(held_out)}

    def train() -> None:
        head.train()
        carries["train"], loss, *_ = head(carry=carries["train"], batch=next_batch(), return_keys=[])
        (loss / cfg.train.global_batch_size).backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
        if average is not None:
            average.update(plain)

    def evaluate() -> None:
        head.eval()
        with torch.no_grad():
            carries["eval"], *_ = head(carry=carries["eval"], batch=held_out, return_keys=[])

    return step.Programs({"train": train, "eval": evaluate}, exp.runtime.wait)


def _adam_atan2(platform: str) -> Any:
    try:
        if platform == "cuda":
            return importlib.import_module("adam_atan2").AdamATan2
    except ImportError:
        pass
    return tests_module("ordinary").AdamATan2


def _nano(exp: Experiment) -> step.Programs:
    cfg, arch = exp.cfg, exp.arch
    model, recursion, optimizer = cfg.model, cfg.recursion, cfg.optimizer
    module = importlib.import_module("src.nn.models.trm").TRMModule(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        max_grid_size=round(arch.seq_len**0.5),
        H_cycles=recursion.T,
        L_cycles=recursion.n,
        N_supervision=recursion.n_sup,
        N_supervision_val=recursion.n_sup,
        ffn_expansion=model.expansion,
        learning_rate=optimizer.lr,
        learning_rate_emb=optimizer.puzzle_emb_lr,
        weight_decay=optimizer.weight_decay,
        halt_exploration_prob=recursion.halt_exploration_prob,
        puzzle_emb_dim=model.puzzle_emb_ndim,
        puzzle_emb_len=model.prefix_len,
        pos_emb_type=None if model.mixer == "mlp" else "1d",
        use_mlp_t=model.mixer == "mlp",
        vocab_size=arch.vocab_size,
        num_puzzles=arch.num_puzzle_identifiers,
        batch_size=cfg.train.global_batch_size,
        seq_len=arch.seq_len,
        forward_dtype=arch.dtype,
    )
    module.total_steps = exp.total_steps
    module._optimizers = module.configure_optimizers()
    keys = {"inputs": "input", "labels": "output", "puzzle_identifiers": "puzzle_identifiers"}
    next_batch, held_out = _batches(exp, keys)
    carry = module.initial_carry(held_out)

    def train() -> None:
        module.train()
        module.training_step(next_batch(), 1)  # at every 50th it reports its gradients

    def evaluate() -> None:
        nonlocal carry
        module.eval()
        with torch.no_grad():
            carry, *_ = module.compute_loss_and_metrics(carry, held_out)

    return step.Programs({"train": train, "eval": evaluate}, exp.runtime.wait)
