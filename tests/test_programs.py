"""Every key that changes the compiled programs, in pairs, on every backend: prepared, run, and what they leave as it must be."""

import dataclasses
import itertools
import os
import random
import re

import pytest
import torch

from trm.backends import start
from trm.backends.base import map_tensors
from trm.backends.inductor import InductorRuntime
from trm.cli import compose
from trm.config import HardwareConfig, InferenceConfig, all_keys, validate
from trm.config.keys import NUMBERS
from trm.config.schema import role
from trm.core.architecture import architecture
from trm.core.initial import init_buffers
from trm.core.metrics import named, training_names
from trm.core.programs import ONE, eval_program, train_program
from trm.core.step import StepConfig, empty_carry, init_state
from trm.errors import ConfigError
from trm.inference.early_exit import early_exit_program, first_rows
from trm.run.checkpoint import flatten
from trm.run.experiment import on_devices

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, CELLS, TOKENS = 4, 4, 5
VALUES = {
    "model.mixer": ["mlp", "attention"],
    "model.num_layers": [1, 2],
    "model.mlp": ["swiglu", "conv_swiglu", "conv2d_swiglu", "gated_norm_swiglu"],
    "model.positions": ["none", "learned", "rope", "rope2d"],
    "model.puzzle_emb_ndim": [0, 8],
    "model.puzzle_emb_len": [0, 2],
    "model.registers": [0, 1],
    "model.separate_networks": [False, True],
    "model.loss": ["stablemax", "softmax"],
    "recursion.variant": ["trm", "one_step_gradient", "single_z", "single_state", "multi_scale_z"],
    "recursion.T": [1, 2],
    "recursion.n": [1, 2],
    "recursion.n_sup": [1, 3],
    "recursion.act_continue": [False, True],
    "recursion.damping": [1.0, 0.9],
    "recursion.noise": [0.0, 0.1],
    "recursion.supervision_decay": [1.0, 0.5],
    "latents.init": ["fixed", "random"],
    "latents.num_hypotheses": [1, 2],
    "objective.label_smoothing": [0.0, 0.1],
    "ema.enabled": [True, False],
    "ema.start_step": [0, 1],
    "optimizer.name": ["adam_atan2", "adamw", "muon"],
    "optimizer.others": ["adam_atan2", "adamw"],
    "optimizer.matrix_lr": [None, 0.01],
    "optimizer.matrix_weight_decay": [None, 0.01],
    "optimizer.matrix_scale": ["adam", "aspect"],
    "optimizer.clip_grad_norm": [None, 0.1],
    "optimizer.schedule": ["constant", "cosine"],
    "hardware.dtype": ["float32", "bfloat16", "float64"],
    "hardware.loss_dtype": ["float64", "float32"],
    "hardware.attention": ["auto", "scores", "fused", "blocks"],
    "train.trainable": ["all", "puzzle_embedding"],
    "identifiers": [3, 50],  # fewer and more than the batch has rows
}
# Of these a program has another number or size in it; a curriculum is a program for each of its depths.
NUMBERS_ALONE = {
    "model.hidden_size", "model.num_heads", "model.expansion", "model.rope_theta", "model.rms_norm_eps", "objective.halt_weight",
    "recursion.halt_exploration_prob", "recursion.curriculum", "ema.rate", "optimizer.lr", "optimizer.weight_decay",
    "optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.momentum", "optimizer.warmup_steps", "optimizer.lr_min_ratio",
    "optimizer.puzzle_emb_lr", "optimizer.puzzle_emb_weight_decay", "train.max_steps", "train.epochs", "train.global_batch_size",
    "optimizer.parametrization", "optimizer.base_hidden_size", "optimizer.base_num_layers", "optimizer.decay_with_rate",
    "optimizer.warmup_share", "train.max_flops", "train.init_from", "seed",
}  # fmt: skip
# Pairs that do not go together
EXCLUDED = {
    frozenset({(a, x), (b, y)})
    for a, some, b, others in [
        ("model.mixer", ["mlp"], "model.positions", ["rope", "rope2d"]),
        ("model.puzzle_emb_ndim", [0], "model.puzzle_emb_len", [2]),
        ("model.puzzle_emb_ndim", [0], "train.trainable", ["puzzle_embedding"]),
        ("latents.num_hypotheses", [2], "recursion.act_continue", [True]),
        ("latents.num_hypotheses", [2], "recursion.variant", ["single_z", "single_state"]),
        ("recursion.variant", ["single_state"], "model.separate_networks", [True]),
        ("hardware.dtype", ["float64"], "hardware.loss_dtype", ["float32"]),
        *(
            ("optimizer.name", ["adam_atan2", "adamw"], f"optimizer.{key}", VALUES[f"optimizer.{key}"][1:])
            for key in ("others", "matrix_lr", "matrix_weight_decay", "matrix_scale")
        ),
    ]
    for x, y in itertools.product(some, others)
}


def pairwise():
    """Cases such that every two values of two keys that go together are in one of them."""

    def pairs(chosen, key, value):
        return [frozenset({(key, value), other}) for other in chosen.items()]

    draw = random.Random(0)
    keys = itertools.combinations(VALUES, 2)
    left = {frozenset({(a, x), (b, y)}) for a, b in keys for x, y in itertools.product(VALUES[a], VALUES[b])} - EXCLUDED
    cases = []
    while left:
        case = dict(min(left, key=lambda pair: sorted(map(repr, pair))))
        for key in draw.sample([key for key in VALUES if key not in case], len(VALUES) - 2):
            fits = [value for value in VALUES[key] if not EXCLUDED.intersection(pairs(case, key, value))]
            case[key] = max(draw.sample(fits, len(fits)), key=lambda value: len(left.intersection(pairs(case, key, value))))
        left -= {frozenset(pair) for pair in itertools.combinations(case.items(), 2)}
        cases.append({key: case[key] for key in VALUES})
    return cases


CASES = pairwise()
WAYS = [
    ONE,
    InferenceConfig(rollouts=2, noise=0.3, selection="best_q"),
    InferenceConfig(restarts=2, selection="residual", window=1),
    InferenceConfig(rollouts=2, noise=0.3, selection="resample"),
]
EXITS = [ONE, InferenceConfig(rollouts=2, noise=0.3, selection="halt_first")]


BASE = compose(
    ["run_name=r", "data=sudoku_4x4", "model=tiny", "model.hidden_size=8", "model.num_heads=2", f"train.global_batch_size={ROWS}",
     "optimizer.warmup_steps=2", "recursion.halt_exploration_prob=0"]
)  # fmt: skip


def settings(case):
    """The smallest config with these values."""
    cfg = BASE
    for key, value in case.items():
        group, _, name = key.partition(".")
        if name:
            cfg = dataclasses.replace(cfg, **{group: dataclasses.replace(getattr(cfg, group), **{name: value})})
    return cfg


def test_every_key_is_in_the_matrix_or_only_a_number():
    keys = {key for key in all_keys() if "." in key and role(key) == NUMBERS and not key.startswith("data.")}
    assert keys | {"hardware.attention", "seed", "identifiers"} == VALUES.keys() | NUMBERS_ALONE


def test_the_cases_go_together_and_what_is_left_out_does_not():
    for case in CASES:
        validate(settings(case | {"hardware.backend": "eager"}))
    first = {key: values[0] for key, values in VALUES.items()}
    for pair in EXCLUDED:
        with pytest.raises(ConfigError):
            validate(settings(first | dict(pair)))


def programs(cfg, arch, way, early_way, in_place=False):
    """(program, its arguments on the CPU) of training, evaluation and evaluation with early exit."""
    buffers = init_buffers(arch, 0)
    state = init_state(cfg, arch, buffers)
    generator = torch.Generator().manual_seed(0)

    def drawn(high, *shape):
        return torch.randint(high, shape, generator=generator, dtype=torch.int32)

    questions = {
        "inputs": drawn(TOKENS, ROWS + 1, CELLS),
        "labels": drawn(TOKENS, ROWS + 1, CELLS),
        "puzzle_identifiers": drawn(arch.num_puzzle_identifiers, ROWS + 1),
        "rows": torch.arange(ROWS + 1),
    }
    batch = {name: rows[:ROWS] for name, rows in questions.items()}
    trained = {name: rows for name, rows in batch.items() if name != "rows"} | {"min_steps": torch.zeros(ROWS, dtype=torch.int32)}
    questions["labels"][-1] = -100
    step = StepConfig(arch, cfg.optimizer, cfg.ema.rate, 10, cfg.ema.start_step, cfg.train.trainable)
    current = state, torch.zeros(len(training_names()), dtype=arch.master_dtype)
    yield train_program(step, in_place=in_place), (current, buffers, trained)
    weights, table = state.weights, state.puzzle_embedding
    yield eval_program(arch, way), (weights, buffers, table, empty_carry(arch, buffers, ROWS), batch)
    queue = questions, first_rows(arch, buffers, ROWS), torch.zeros((), dtype=torch.int32), None
    yield early_exit_program(arch, early_way, 2), (weights, buffers, table, *queue)


def kinds(tree):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in flatten(tree).items()}


def prepare(runtime, program, args):
    """The program compiled ahead, and its arguments on the devices, which are as they were sent."""
    compiled, placed = runtime.compile(*program), runtime.replicate(map_tensors(torch.clone, args))
    runtime.prepare(compiled, *placed)
    for (name, tensor), found in zip(flatten(args).items(), flatten(runtime.fetch(placed)).values(), strict=True):
        assert torch.equal(found, tensor), name
    return compiled, placed


def test_preparing_changes_no_argument_where_inductor_s_first_call_is_what_compiles():
    runtime = start(HardwareConfig(name="cpu", backend="eager"))
    runtime.prepare = InductorRuntime.prepare.__get__(runtime)
    case = {"model.puzzle_emb_ndim": 8, "train.trainable": "puzzle_embedding", "identifiers": 50}
    cfg = settings(case)
    arch = architecture(cfg, seq_len=CELLS, vocab_size=TOKENS, num_puzzle_identifiers=50)  # with blocks that are not compiled
    for way, early_way in itertools.zip_longest(WAYS, EXITS, fillvalue=ONE):
        for program, args in programs(cfg, arch, way, early_way, in_place=True):
            prepare(runtime, program, args)


TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.1}


@pytest.fixture
def runtime():
    """conftest.py starts torch_xla before the first test that has this."""


# A case takes a compiler 20 s: it has every twelfth one, `make nightly` all of them.
COMPILED = range(len(CASES)) if os.environ.get("TRM_MATRIX") == "all" else range(0, len(CASES), 12)


@pytest.mark.parametrize(
    ("backend", "number"),
    [
        *(("eager", number) for number in range(len(CASES))),
        *(pytest.param(name, number, marks=pytest.mark.long) for name in ("xla", "inductor") for number in COMPILED),
    ],
)
def test_programs_on_every_backend(runtime, backend, number):
    case, parts = CASES[number], (0, 1, 2) if backend == "eager" else (0, 1 + number % 2)  # compiling takes long
    if backend == "inductor" and case["hardware.dtype"] == "float64":
        case = case | {"hardware.attention": "auto"}  # fused is refused
    found, expected = (list(results(name, case, number, parts)) for name in (backend, "eager"))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[case["hardware.dtype"]], atol=1e-6)


def test_the_embedding_alone_trains_on_torch_xla(runtime):
    """Most of the state comes back as it was given: results that are arguments."""
    case = {"model.num_layers": 1, "recursion.T": 1, "recursion.n": 1, "recursion.n_sup": 1, "model.puzzle_emb_ndim": 8}
    case |= {"train.trainable": "puzzle_embedding", "identifiers": 50}
    found, expected = (next(results(backend, case)) for backend in ("xla", "eager"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("identifiers", [3, 50])
def test_products_of_float32_are_of_float32_on_a_tpu(runtime, identifiers):
    """As the module says that is compiled there: a TPU rounds what it multiplies to bfloat16 unless it is told otherwise."""
    case = {"model.mixer": "attention", "model.mlp": "conv2d_swiglu", "model.num_layers": 1, "model.puzzle_emb_ndim": 8}
    case |= {"recursion.T": 1, "recursion.n": 1, "optimizer.name": "muon", "hardware.loss_dtype": "float32"}
    cfg = settings(case | {"hardware.backend": "xla"})
    runtime = start(cfg.hardware)
    sizes = {"seq_len": CELLS, "vocab_size": TOKENS, "num_puzzle_identifiers": identifiers}
    arch = on_devices(architecture(cfg, **sizes), runtime)
    program, args = next(programs(cfg, arch, ONE, ONE))
    tensors = list(flatten(program.function(*runtime.replicate(args))).values())
    import torch_xla

    products = re.findall(r"= f32\S* (dot|convolution)\((.*)", torch_xla._XLAC._get_xla_tensors_hlo(tensors))
    assert len(products) > 30
    assert all("operand_precision={highest,highest}" in rest for _, rest in products), products


def results(backend, case, number=0, parts=(0, 1, 2)):
    """Sums of losses of two steps of training, of the second one of evaluation and of that with early exit, or some of these."""
    if backend == "inductor":
        torch._dynamo.reset()
    cfg = settings(case | {"hardware.backend": backend})
    runtime = start(cfg.hardware)
    sizes = {"seq_len": CELLS, "vocab_size": TOKENS, "num_puzzle_identifiers": case["identifiers"]}
    arch = on_devices(architecture(cfg, **sizes), runtime)
    ways = WAYS[number // 2 % len(WAYS)], EXITS[number // 2 % len(EXITS)]
    for part, (program, args) in enumerate(programs(cfg, arch, *ways, runtime.can.in_place)):
        if part in parts:
            found = runtime.fetch((trained, evaluated, left_early)[part](*prepare(runtime, program, args)))
            if part == 0:
                found = named(training_names(), found)
                yield [found[name] for name in ("lm_loss", "q_halt_loss", "count")]
            else:
                yield [found.values[name].sum().item() for name in ("lm_loss", "q_halt_loss")]


def trained(step, args):
    current, buffers, batch = args
    before = kinds(current)
    for _ in range(2):
        current = step(current, buffers, batch)
    assert kinds(current) == before  # else its checkpoint could not be read back
    return current[1]


def evaluated(step, args):
    *given, carry, batch = args
    for _ in range(2):
        carry, found = step(*given, carry, batch)
    return found


def left_early(step, args):
    *given, rows, next_group, votes = args
    for _ in range(2):
        rows, next_group, found = step(*given, rows, next_group, votes)
    return found
