"""The same run on one device and on eight virtual devices under SPMD computes the same losses, also when it moves between them.

The latents of an untrained MLP mixer amplify rounding differences some tenfold a step, so float32 with that mixer parts after a few
steps on any two machines. Float64 shows that the computation is the same; attention is tame enough to show it in float32 too.
"""

import shutil

import pytest
from running import TINY, metrics, run

CASES = {
    "mlp-float64": ["hardware.dtype=float64"],
    "attention-float32": ["model.mixer=attention", "model.positions=rope", "recursion.n_sup=16"],
}


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_on_one_and_eight_devices(tmp_path, case):
    losses = {}
    for hardware in ("cpu", "cpu_mesh"):
        arguments = [*TINY, *CASES[case], f"hardware={hardware}", f"run_name={hardware}", "train.eval_every_steps=null"]
        arguments += ["model.puzzle_emb_ndim=64", "model.puzzle_emb_len=2"]
        run(tmp_path, "trm.train", *arguments)
        lines = metrics(tmp_path / "outputs" / hardware, "train")
        losses[hardware] = [line["loss"] for line in lines]
        compiles = [line["compiles"] for line in lines]
        assert set(compiles) == {compiles[0]}
    assert len(losses["cpu"]) == 20
    assert losses["cpu_mesh"] == pytest.approx(losses["cpu"], rel=1e-5)


def test_resume_on_a_mesh_is_exact_and_on_another_number_of_devices_close(tmp_path):
    """To the byte on the same devices; after moving, losses equal to 1e-5 over the next 20 steps."""
    arguments = [*TINY, *CASES["attention-float32"], "train.eval_every_steps=null", "train.checkpoint_every_steps=null"]
    outputs = tmp_path / "outputs"
    run(tmp_path, "trm.train", *arguments, "hardware=cpu_mesh", "run_name=whole", "train.max_steps=27")
    run(tmp_path, "trm.train", *arguments, "hardware=cpu_mesh", "run_name=parts", "train.max_steps=7")
    shutil.copytree(outputs / "parts", outputs / "moved", symlinks=True)
    run(tmp_path, "trm.train", *arguments, "hardware=cpu_mesh", "run_name=parts", "train.max_steps=27")
    run(tmp_path, "trm.train", *arguments, "hardware=cpu", "run_name=moved", "train.max_steps=27")
    whole, parts = (outputs / name / "checkpoints" / "step_27" / "state.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    losses = {name: [line["loss"] for line in metrics(outputs / name, "train")] for name in ("whole", "moved")}
    assert len(losses["moved"]) == 27
    assert losses["moved"] == pytest.approx(losses["whole"], rel=1e-5)
