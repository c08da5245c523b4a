"""The coordinate check of Tensor Programs V: sizes of activations, and of their change after so many training steps."""

from dataclasses import replace

import torch

from trm.cli import compose
from trm.core.architecture import Architecture, architecture
from trm.core.initial import init_buffers, with_latents
from trm.core.model import embed, forward
from trm.core.step import StepConfig, init_state, train_step

ROWS, CELLS, VOCAB = 8, 16, 5  # a puzzle of 4x4
AFTER = (1, 2, 4, 8)  # training steps
BASE = 64


def settings(width: int, *overrides: str, lr: float = 2e-4):
    """A tiny network of this width, with heads of 16 channels and a puzzle embedding as wide as a token."""
    return compose(
        [
            "data=sudoku_4x4", "recipe=tiny", "recursion=t2_n2", "run_name=x", f"model.hidden_size={width}", "recursion.n_sup=4",
            f"model.num_heads={width // 16}", f"model.puzzle_emb_ndim={width}", "model.puzzle_emb_len=1", "ema=off",
            f"train.global_batch_size={ROWS}", "optimizer.warmup_steps=0", f"optimizer.lr={lr}", f"optimizer.puzzle_emb_lr={lr}",
            *overrides,
        ]
    )  # fmt: skip


def batch():
    """Random grids, whose answer is the next symbol of each cell: something that a few steps learn about."""
    grids = torch.randint(1, VOCAB, (ROWS, CELLS), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    zero = torch.zeros(ROWS, dtype=torch.int32)
    return {"inputs": grids, "labels": grids % (VOCAB - 1) + 1, "puzzle_identifiers": zero, "min_steps": zero}


def activations(arch: Architecture, weights, buffers, table, inputs):
    """What each matrix makes in the first and in the last pass of a supervision step, and what comes out, by name."""
    found, names = {}, {}

    def linear(x, weight):
        y = torch.nn.functional.linear(x, weight)
        name = names[id(weight)]
        found.setdefault(f"{name} first", y)
        found[f"{name} last"] = y
        return y

    own = {name: weight for name, weight in weights.items()}
    names = {id(weight): name for name, weight in own.items()}
    watched = replace(arch, linear=linear, swiglu=None)
    vectors = table[torch.zeros(len(inputs), dtype=torch.int64)]
    out = forward(watched, own, buffers, vectors, with_latents(arch, buffers, len(inputs)), inputs)
    latents = {f"latent {name}": value for name, value in out.latents.items()}
    x = embed(arch, weights, vectors, inputs)
    return {
        "question": x[:, arch.model.prefix_len :],
        "prefix": x[:, : arch.model.prefix_len],
        **found,
        **latents,
        "logits": out.logits,
        "q": out.q_halt,
    }


def check(width: int, *overrides: str, lr: float = 2e-4, seeds: int = 1):
    """Root mean squares by activation: {name: [size, change after 1, 2, 4, 8 steps]}, the mean over the seeds."""
    total = None
    for seed in range(seeds):
        rows = _check(settings(width, f"seed={seed}", *overrides, lr=lr))
        total = rows if total is None else {name: [a + b for a, b in zip(total[name], rows[name], strict=True)] for name in rows}
    return {name: [value / seeds for value in row] for name, row in total.items()}


def _check(cfg):
    arch = architecture(cfg, seq_len=CELLS, vocab_size=VOCAB, num_puzzle_identifiers=1)
    buffers, data = init_buffers(arch, cfg.seed), batch()
    state, step = init_state(cfg, arch, buffers), StepConfig(arch, cfg.optimizer, cfg.ema.rate, 100)

    def now():
        with torch.no_grad():
            return activations(arch, state.weights, buffers, state.puzzle_embedding, data["inputs"])

    first = now()
    found = {name: [_rms(value)] for name, value in first.items()}
    for done in range(1, max(AFTER) + 1):
        state = train_step(step, state, buffers, data)[0]
        if done in AFTER:
            for name, value in now().items():
                found[name].append(_rms(value - first[name]))
    return found


def _rms(value):
    return value.square().mean().sqrt().item()
