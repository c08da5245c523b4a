"""The same run on one device and on eight virtual devices under SPMD computes the same losses, also when it moves between them.

The latents of an untrained MLP mixer amplify rounding differences some tenfold a step, so float32 with that mixer parts after a few
steps on any two machines. Float64 shows that the computation is the same; attention is tame enough to show it in float32 too.
"""

import functools
import math
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch.utils._pytree as pytree
from running import MESH, TINY, XLA, metrics, run, xla_dump

from trm.cli import compose
from trm.core.architecture import architecture
from trm.core.initial import init_buffers, num_parameters, weight_shapes
from trm.core.metrics import METRICS, training_names
from trm.core.step import empty_carry, init_state

CASES = {
    "mlp-float64": ["hardware.dtype=float64"],
    "attention-float32": ["model.mixer=attention", "model.positions=rope", "recursion.n_sup=16", "model.num_layers=1"],
    "variants-float64": [
        "hardware.dtype=float64",
        "recursion={damping:0.95,noise:0.05,T:1,n:1}",
        "latents={init:random,num_hypotheses:2}",
        "model={mlp:conv_swiglu,registers:1,num_layers:1}",
    ],
}


pytestmark = pytest.mark.long

PREFIX = ["model.puzzle_emb_ndim=64", "model.puzzle_emb_len=2", "train.eval_every_steps=null"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that trains a case on so many devices, once, and returns the run's folder."""
    folder = tmp_path_factory.mktemp("work")

    @functools.cache
    def train(case, devices):
        hardware = XLA if devices == 1 else [*MESH, f"hardware.devices_per_host={devices}"]
        run(folder, "trm.train", *TINY, *CASES[case], *PREFIX, *hardware, f"run_name={case}_{devices}")
        return folder / "outputs" / f"{case}_{devices}"

    return train


@pytest.mark.timeout(900)  # most of it is compiling
@pytest.mark.parametrize(("case", "meshes"), [("mlp-float64", [8]), ("variants-float64", [8]), ("attention-float32", [2, 8])])
def test_losses_equal_on_one_and_several_devices(trained, case, meshes):
    losses = {}
    for devices in (1, *meshes):
        lines = metrics(trained(case, devices), "train")
        losses[devices] = [line["loss"] for line in lines]
        compiles = [line["compiles"] for line in lines]
        assert set(compiles) == {compiles[0]}
    assert len(losses[1]) == 20
    for devices in meshes:
        assert losses[devices] == pytest.approx(losses[1], rel=1e-5)


def test_the_devices_exchange_gradients_and_scalars_and_nothing_else(tmp_path, monkeypatch):
    """Read from the compiled module of the training step: its collectives, and that the state's memory is used again."""
    monkeypatch.setenv("XLA_FLAGS", xla_dump(tmp_path / "dump"))
    run(tmp_path, "trm.train", *TINY, *PREFIX, *MESH, "run_name=dumped", "train.max_steps=1")
    modules = [path.read_text() for path in (tmp_path / "dump").glob("*SyncTensorsGraph*after_optimizations.txt")]
    module = max(modules, key=len)  # the evaluation step is smaller
    assert not re.search(r"all-gather|all-to-all|collective-permute|reduce-scatter", module)
    reduced = [tuple(int(d) for d in dims.split(",") if d) for dims in re.findall(r"= \w+\[([\d,]*)\]\S* all-reduce\(", module)]
    cfg = compose([*TINY, *PREFIX])
    arch = architecture(cfg, seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    shapes = set(weight_shapes(arch).values())
    transposed = {shape[::-1] for shape in shapes}
    vectors = {(1, cfg.model.puzzle_emb_ndim)}  # the sign-SGD's gradient, summed for each identifier
    assert {shape for shape in reduced if math.prod(shape) > 2} <= shapes | transposed | vectors
    matrices = {shape for shape in shapes if len(shape) == 2}
    assert all(shape in reduced or shape[::-1] in reduced for shape in matrices)
    # every gradient once, not once in every pass of the recursion
    assert sum(math.prod(shape) for shape in reduced if math.prod(shape) > 64) <= num_parameters(arch)
    # memory of a device: an eighth of the 16 rows' latents (18 tokens of 64), all of the weights, and no whole batch anywhere
    inputs = re.search(r"entry_computation_layout=\{\((.*?)\)->", module.splitlines()[0])[1]
    assert inputs.count("f32[2,18,64]") == len(arch.latent_names)
    assert inputs.count("f32[512,64]") >= 4 * 2  # weights, moments and EMA of two blocks
    assert "[16,18,64]" not in module
    assert module.splitlines()[0].count("may-alias") >= 4 * len(shapes)  # weights, two moments, EMA
    # every result lies as it is declared, so that it comes back as the argument that the graph was made for
    cfg = compose([*TINY, *PREFIX, *MESH])
    state = init_state(cfg, arch, init_buffers(arch, 0))
    whole = [(len(training_names()),), *shapes_of(state._replace(carry=None))]
    assert results_of(module) == Counter(whole + shapes_of(state.carry, devices=8))
    declared = [path.read_text() for path in (tmp_path / "dump").glob("*SyncTensorsGraph*before_optimizations.txt")]
    assert max(declared, key=len).count('custom_call_target="Sharding"') >= results_of(module).total()
    evaluation = next(text for text in modules if "s32[16,16]" in text.splitlines()[0].partition("->")[2])  # the answers
    eval_carry = shapes_of(empty_carry(arch, init_buffers(arch, 0), 16), devices=8)
    whole = [(16, 16), (8, 16), *[(16,)] * (len(METRICS) + 2)]  # answers, confidence, and each row's metrics and halting logits
    assert results_of(evaluation) == Counter([*eval_carry, *whole])


def results_of(module):
    """How many results of each shape a compiled module has on one device."""
    text = module.splitlines()[0].partition(")->(")[2]
    return Counter(tuple(int(d) for d in dims.split(",") if d) for dims in re.findall(r"\w+\[([\d,]*)\]", text))


def shapes_of(tree, devices=1):
    """The shapes of a tree of tensors, with each device's share of the first axis."""
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if leaf is not None]
    return [(leaf.shape[0] // devices, *leaf.shape[1:]) if leaf.ndim else () for leaf in leaves]


def test_resume_on_a_mesh_is_exact_and_on_another_number_of_devices_close(trained, tmp_path):
    """To the byte on the same devices; after moving, losses equal to 1e-5."""
    arguments, outputs = [*TINY, *CASES["mlp-float64"], *PREFIX], tmp_path / "outputs"
    whole, parts, moved = trained("mlp-float64", 8), outputs / "parts", outputs / "moved"
    run(tmp_path, "trm.train", *arguments, *MESH, "run_name=parts", "train.max_steps=7")
    shutil.copytree(parts, moved, symlinks=True)
    run(tmp_path, "trm.train", *arguments, *MESH, "run_name=parts")
    run(tmp_path, "trm.train", *arguments, *XLA, "run_name=moved")
    states = [folder / "checkpoints" / "step_20" / "state.safetensors" for folder in (whole, parts)]
    assert states[0].read_bytes() == states[1].read_bytes()
    losses = [[line["loss"] for line in metrics(folder, "train")] for folder in (whole, moved)]
    assert len(losses[1]) == 20
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_extremes_over_hosts_are_right_on_sharded_rows(tmp_path):
    code = (
        "from trm.backends import start; from trm.backends.base import extremes_over_hosts; from trm.config import HardwareConfig; "
        "print(extremes_over_hosts(start(HardwareConfig(name='m', devices_per_host=8)), [3, 2**28 - 1, -1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "([3, 268435455, -1], [3, 268435455, -1])"
