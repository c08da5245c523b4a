"""Parity with the released code on recorded cases: `pytest tests/test_parity.py --golden-dir DIR` (default tests/golden).

In float64 all recorded training steps and the evaluation must agree to 1e-6 of each array's largest value (evaluation logits
1e-4); in float32 the first step to 1e-4. Each check runs through plain eager torch, inductor, the compiled XLA step, and on a GPU
where there is one.
"""

import functools
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from golden_cases import load_case

from trm.backends import start
from trm.config import HardwareConfig
from trm.core.metrics import named, training_names
from trm.core.step import empty_carry, eval_step, loss_and_grads, train_step


@pytest.fixture(scope="module", params=["eager", "inductor", "xla", "gpu", "gpu_eager"])
def hardware(request):
    if request.param == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    if request.param == "xla" and find_spec("torch_xla") is None:
        pytest.skip("torch_xla is not installed")
    if not request.param.startswith("gpu"):
        return HardwareConfig(name="cpu", backend=request.param)
    if not torch.cuda.is_available():
        pytest.skip("hardware=gpu: this machine has no CUDA device")
    return HardwareConfig(name="gpu", platform="cuda", backend="eager" if request.param == "gpu_eager" else "inductor")


@pytest.fixture(scope="module")
def runtime(hardware):
    return start(hardware)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Each case compiles the same functions for other constants; torch.compile counts that as recompiling."""
    torch._dynamo.reset()


def assert_close(name, ours, reference, tolerance):
    ours, reference = np.asarray(ours, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    assert ours.shape == reference.shape, name
    assert np.isfinite(ours).all(), name
    error = np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30)
    if not reference.any():
        error = np.abs(ours).max()
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:g}"
    return error


def run_training(case, runtime, num_steps):
    """Logs of each step as a dict of stacked arrays, the logits by step, the gradients of the first step, and the final state."""
    cfg = case.step_config
    step = runtime.compile(functools.partial(train_step, cfg))
    state, buffers = case.state(), runtime.replicate(case.buffers())
    state = runtime.replicate(state._replace(carry=None))._replace(carry=runtime.shard(state.carry))
    logs, logits, grads = [], {}, None
    for i in range(num_steps):
        state, out = step(state, buffers, runtime.shard_batch(case.batch(i)))
        sums, q_halt, halted, steps, logits[i + 1], loss = runtime.fetch(
            (out.sums, out.q_halt, state.carry.halted, state.carry.steps, out.logits, out.loss)
        )
        grads = runtime.fetch(out.grads) if grads is None else grads
        log = named(training_names(), sums)
        log |= {"halted": halted.numpy(), "steps_per_row": steps.numpy(), "q_halt_logits": q_halt.numpy(), "loss": loss.item()}
        logs.append(log)
    return {k: np.stack([log[k] for log in logs]) for k in logs[0]}, logits, grads, runtime.fetch(state)


def first_gradients_are_close(name, case, ours, tolerance):
    reference = case.tensors("grad1/").weights
    assert ours.keys() == reference.keys()
    error = max(assert_close(f"grad1/{k}", ours[k], reference[k], tolerance) for k in reference)
    print(f"{name}: largest relative gradient error {error:.1e}")


def test_training_float64(golden_case, runtime):
    case = load_case(golden_case, runtime=runtime)
    num_steps = case.settings["train_steps"]
    log, logits, grads, state = run_training(case, runtime, num_steps)
    first_gradients_are_close(golden_case.name, case, grads, 1e-6)
    log["loss"] = log["loss"] * case.settings["batch_size"]  # the record holds the sum over rows
    errors = {}
    for key, reference in case.arrays.items():
        group, _, name = key.partition("/")
        if group == "log":
            errors[key] = assert_close(key, log[name], reference, 1e-6)
        elif group == "logits":
            errors[key] = assert_close(key, logits[int(name)], reference, 1e-6)
    assert {"log/lm_loss", "log/q_halt_loss", "log/halted", "logits/1", f"logits/{num_steps}"} <= errors.keys()
    final, ema = case.tensors("final/"), case.tensors("ema/")
    for name, reference in final.weights.items():
        errors[f"final/{name}"] = assert_close(f"final/{name}", state.weights[name], reference, 1e-6)
        errors[f"ema/{name}"] = assert_close(f"ema/{name}", state.ema[name], ema.weights[name], 1e-6)
    if final.puzzle_embedding is not None:
        errors["final/puzzle"] = assert_close("puzzle embedding", state.puzzle_embedding, final.puzzle_embedding, 1e-6)
    print(f"{golden_case.name}: largest relative error {max(errors.values()):.1e} of {len(errors)} arrays")


def test_first_gradients_with_attention_in_blocks(golden_case, runtime, monkeypatch):
    monkeypatch.setattr("trm.core.attention.BLOCK_TOKENS", 30)
    case = load_case(golden_case, runtime=runtime, attention="blocks")
    if case.arch.model.mixer == "mlp":
        pytest.skip("the case has no attention")
    function = runtime.compile(functools.partial(loss_and_grads, case.step_config))
    state = case.state()
    state = runtime.replicate(state._replace(carry=None))._replace(carry=runtime.shard(state.carry))
    _, _, out = function(state, runtime.replicate(case.buffers()), runtime.shard_batch(case.batch(0)))
    first_gradients_are_close(golden_case.name, case, runtime.fetch(out.grads), 1e-6)


def test_evaluation_float64(golden_case, runtime):
    case = load_case(golden_case, runtime=runtime)
    arch, model = case.arch, case.tensors("final/")

    def tensors_of(*args):
        carry, out, _ = eval_step(arch, *args)
        return carry, out.logits, out.q_halt

    step = runtime.compile(tensors_of)
    buffers = runtime.replicate(case.buffers())
    weights, table = runtime.replicate((model.weights, model.puzzle_embedding))
    carry = runtime.shard(empty_carry(arch, case.buffers(), len(case.arrays["eval/inputs"])))
    batch = runtime.shard_batch(case.eval_batch())
    worst = 0.0
    for i, (logits, q_halt) in enumerate(zip(case.arrays["eval/logits"], case.arrays["eval/q_halt_logits"], strict=True)):
        carry, *heads = step(weights, buffers, table, carry, batch)
        our_logits, our_q_halt = runtime.fetch(heads)
        worst = max(worst, assert_close(f"eval/logits step {i + 1}", our_logits, logits, 1e-4))
        assert_close(f"eval/q_halt_logits step {i + 1}", our_q_halt, q_halt, 1e-4)
    print(f"{golden_case.name}: largest relative error of evaluation logits {worst:.1e}")


def test_first_step_float32(golden_case, runtime):
    case = load_case(golden_case, torch.float32, runtime)
    log, logits, grads, _ = run_training(case, runtime, 1)
    assert_close("logits/1", logits[1], case.arrays["logits/1"], 1e-4)
    for name in ("lm_loss", "q_halt_loss"):
        assert_close(name, log[name], case.arrays[f"log/{name}"][:1], 1e-4)
    first_gradients_are_close(golden_case.name, case, grads, 1e-4)
