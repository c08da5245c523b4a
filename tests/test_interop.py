"""The released code's names and files: what goes out comes back, and what does not fit is refused by name."""

import pickle
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from test_model import make_arch as small_arch

from trm import interop
from trm.cli import compose
from trm.config import LatentsConfig, RecursionConfig
from trm.core.architecture import architecture
from trm.core.initial import init_buffers, init_puzzle_embedding, init_weights, weight_shapes
from trm.errors import CheckpointError, ConfigError
from trm.interop import ModelTensors, from_reference, read_reference_file, reference_name, to_reference, write_reference_file
from trm.run.saved import SavedRun

MODELS = {
    "mlp": {},
    "attention": {"mixer": "attention", "positions": "rope", "puzzle_emb_ndim": 0},
    "learned": {"mixer": "attention", "positions": "learned"},
    "separate": {"separate_networks": True},
    "one-step gradient": {"variant": "one_step_gradient"},
}


def make_arch(variant="trm", **model):
    sizes = {"puzzle_emb_ndim": 8} | model
    return small_arch(torch.float32, seq_len=4, recursion=RecursionConfig(variant=variant, n=2), **sizes)


def make_model(arch):
    table = init_puzzle_embedding(arch)
    if table is not None:
        table = table + torch.arange(24.0).view(3, 8)
    return ModelTensors(init_weights(arch, 1), init_buffers(arch, 1), table)


def assert_same(ours, other, *, ema=False):
    assert ours.weights.keys() == other.weights.keys()
    assert all(torch.equal(ours.weights[k], other.weights[k]) for k in ours.weights)
    if ema:
        return
    initial = {k: t for k, t in ours.buffers.items() if k.startswith("init.")}
    assert initial.keys() == other.buffers.keys()
    assert all(torch.equal(initial[k], other.buffers[k]) for k in initial)
    if ours.puzzle_embedding is None:
        assert other.puzzle_embedding is None
    else:
        assert torch.equal(ours.puzzle_embedding, other.puzzle_embedding)


def refused(tensors, arch):
    with pytest.raises(CheckpointError) as caught:
        from_reference(tensors, arch, source="some/file")
    message = str(caught.value)
    assert message.startswith("some/file: ")
    assert "\n" not in message
    return message


def test_names_of_the_released_model():
    """The state_dict of the released TinyRecursiveReasoningModel_ACTV1 with an MLP and a puzzle prefix, written out."""
    block = ("mlp_t.gate_up_proj.weight", "mlp_t.down_proj.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight")
    expected = {f"_orig_mod.model.inner.L_level.layers.{i}.{part}" for i in (0, 1) for part in block}
    top = (
        "H_init",
        "L_init",
        "embed_tokens.embedding_weight",
        "lm_head.weight",
        "q_head.weight",
        "q_head.bias",
        "puzzle_emb.weights",
    )
    expected |= {f"_orig_mod.model.inner.{name}" for name in top}
    arch = make_arch()
    model = make_model(arch)
    tensors = to_reference(model, arch)
    assert tensors.keys() == expected
    for theirs, ours in (("H_init", model.buffers["init.z_H"]), ("L_init", model.buffers["init.z_L"])):
        assert torch.equal(tensors[f"_orig_mod.model.inner.{theirs}"], ours)
    assert torch.equal(tensors["_orig_mod.model.inner.lm_head.weight"], model.weights["lm_head"])
    assert torch.equal(tensors["_orig_mod.model.inner.embed_tokens.embedding_weight"], model.weights["embed_tokens"])


def test_attention_and_learned_positions_have_their_names():
    names = to_reference(make_model(make_arch(**MODELS["learned"])), make_arch(**MODELS["learned"]), prefix="")
    assert {"inner.L_level.layers.1.self_attn.qkv_proj.weight", "inner.L_level.layers.1.self_attn.o_proj.weight"} <= names.keys()
    assert "inner.embed_pos.embedding_weight" in names
    rope = make_arch(**MODELS["attention"])
    assert not [name for name in to_reference(make_model(rope), rope) if "cos" in name or "sin" in name or "puzzle" in name]


def test_separate_networks_are_the_two_levels():
    arch = make_arch(separate_networks=True)
    assert reference_name("f_H.1.mlp.down") == "inner.H_level.layers.1.mlp.down_proj.weight"
    assert reference_name("f_L.0.token_mlp.gate_up") == "inner.L_level.layers.0.mlp_t.gate_up_proj.weight"
    model = make_model(arch)
    tensors = to_reference(model, arch, prefix="")
    assert torch.equal(tensors["inner.H_level.layers.0.mlp.down_proj.weight"], model.weights["f_H.0.mlp.down"])
    assert torch.equal(tensors["inner.L_level.layers.0.mlp.down_proj.weight"], model.weights["f_L.0.mlp.down"])
    assert not torch.equal(model.weights["f_H.0.mlp.down"], model.weights["f_L.0.mlp.down"])


@pytest.mark.parametrize("prefix", ["_orig_mod.model.", "model.", "", "_orig_mod.", "module.", "module._orig_mod.model."])
@pytest.mark.parametrize("kind", MODELS)
def test_round_trip(kind, prefix):
    arch = make_arch(**MODELS[kind])
    model = make_model(arch)
    tensors = to_reference(model, arch, prefix)
    assert all(name.startswith(prefix + "inner.") for name in tensors)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert_same(model, from_reference(tensors, arch))


@pytest.mark.parametrize("kind", MODELS)
def test_ema_files_hold_weights_alone(kind):
    arch = make_arch(**MODELS[kind])
    model = make_model(arch)
    ema = ModelTensors(model.weights, {}, None)
    tensors = to_reference(ema, arch, prefix="model.")
    assert not [name for name in tensors if "init" in name or "puzzle" in name]
    loaded = from_reference(tensors, arch)
    assert_same(ema, loaded, ema=True)
    assert loaded.buffers == {}
    assert loaded.puzzle_embedding is None


def test_dtypes_become_the_configurations():
    arch = replace(make_arch(), dtype=torch.bfloat16)
    tensors = {name: t.double() for name, t in to_reference(make_model(arch), arch).items()}
    loaded = from_reference(tensors, arch)
    assert {w.dtype for w in (*loaded.weights.values(), loaded.puzzle_embedding)} == {torch.float32}
    assert {t.dtype for t in loaded.buffers.values()} == {torch.bfloat16}


def test_the_optimizers_buffers_are_skipped():
    arch = make_arch()
    model = make_model(arch)
    tensors = to_reference(model, arch)
    tensors["_orig_mod.model.inner.puzzle_emb.local_weights"] = torch.zeros(4, 8)
    tensors["_orig_mod.model.inner.puzzle_emb.local_ids"] = torch.zeros(4, dtype=torch.int32)
    assert_same(model, from_reference(tensors, arch))


def test_a_written_file_reads_back(tmp_path):
    arch, path = make_arch(), tmp_path / "step_10"
    model = make_model(arch)
    write_reference_file(path, model, arch)
    assert_same(model, read_reference_file(path, arch))
    plain = torch.load(path, weights_only=True)  # what the released code reads
    assert plain.keys() == to_reference(model, arch).keys()


@pytest.mark.parametrize(("ema", "says"), [(True, "EMA weights"), (False, "training weights")])
def test_an_export_says_which_weights_it_wrote(tmp_path, monkeypatch, capsys, ema, says):
    arch = make_arch()
    model = make_model(arch)
    cfg = SimpleNamespace(ema=SimpleNamespace(enabled=ema))
    average = {name: weight + 1 for name, weight in model.weights.items()}
    run = SavedRun(cfg, arch, None, tmp_path, model.weights, average, model.buffers, model.puzzle_embedding)
    monkeypatch.setattr(interop, "open_run", lambda path, overrides: run)
    interop.main(["export", "checkpoint=run", str(tmp_path / "file")])
    assert says in capsys.readouterr().out
    written = read_reference_file(tmp_path / "file", arch)
    assert torch.equal(written.weights["lm_head"], (average if ema else model.weights)["lm_head"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": tensors, "optimizers": [{"state": {}}], "step": 3},
        lambda tensors: {"epoch": 3, "state_dict": tensors, "best": 0.5},
        lambda tensors: {"state_dict": {"model": tensors}},
        lambda tensors: {"model_state_dict": tensors},
        lambda tensors: {"module": tensors, "lr": torch.tensor(0.1).item()},
    ],
)
def test_a_state_dict_beside_other_things_is_found(tmp_path, wrap):
    arch = make_arch()
    model = make_model(arch)
    torch.save(wrap(to_reference(model, arch, "model.module._orig_mod.")), tmp_path / "file.pt")
    assert_same(model, read_reference_file(tmp_path / "file.pt", arch))


def test_a_safetensors_file_is_read(tmp_path):
    arch = make_arch()
    model = make_model(arch)
    safetensors.torch.save_file(to_reference(model, arch), tmp_path / "model.safetensors")
    assert_same(model, read_reference_file(tmp_path / "model.safetensors", arch))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"optimizers": {}, "step": 3}, "holds no state_dict of tensors (optimizers, step)"),
        ({"model": {"step": 3}}, ": model: holds no state_dict of tensors (step)"),
        ({"model": {"inner.lm_head.weight": torch.zeros(1)}}, ": model: tensor "),
        ({}, "holds no state_dict"),
    ],
)
def test_what_a_file_lacks_is_named(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as refused:
        read_reference_file(tmp_path / "x.pt", make_arch())
    assert str(refused.value).startswith(f"{tmp_path}/x.pt")
    assert words in str(refused.value)


def test_names_of_files_may_hold_equals_signs(tmp_path, capsys, monkeypatch):
    """As every path of a sweep does; a comma or a blank in a run's name is no sweep and no end."""
    monkeypatch.chdir(tmp_path)
    small = ["data=sudoku_4x4", "model=tiny", "recursion=t2_n2"]
    arch = architecture(compose([*small, "run_name=r"]), seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    folder = tmp_path / "recursion=t2_n2,seed=0"
    folder.mkdir()
    model = ModelTensors(init_weights(arch, 1), init_buffers(arch, 1), init_puzzle_embedding(arch))
    write_reference_file(folder / "step=3.pt", model, arch)
    run_dir = "runs/mon été,recursion=t2_n2"
    interop.main(["import", "recursion=t2_n2,seed=0/step=3.pt", *small, run_dir])
    assert Path(shlex.split(capsys.readouterr().out)[-1].removeprefix("checkpoint=")) == Path(run_dir)
    Path("t=3").mkdir()
    for file in (f"{run_dir}/out=1.pt", "t=3/out=2.pt"):  # which are still to be written
        interop.main(["export", f"checkpoint={run_dir}", file])
        assert torch.load(file, weights_only=True).keys() == torch.load(folder / "step=3.pt").keys()
    with pytest.raises(ConfigError, match="modle is not a config key"):
        interop.main(["import", "recursion=t2_n2,seed=0/step=3.pt", "runs/third", "modle=tiny"])


class RunsCode:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def file_refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_reference_file(path, make_arch())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, how):
    path, target = tmp_path / "step_10", tmp_path / "created_by_the_file"
    if how == "torch":
        torch.save({"inner.H_init": RunsCode(target)}, path)
    else:
        path.write_bytes(pickle.dumps(RunsCode(target), protocol=2))
    file_refusal(path)
    assert not target.exists()


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    file_refusal(tmp_path / "nowhere")
    file_refusal(tmp_path)
    for name, content in (("empty", b""), ("text", b"hello"), ("zip", b"PK\x03\x04garbage")):
        (tmp_path / name).write_bytes(content)
        file_refusal(tmp_path / name)
    for name, value in (
        ("list", [torch.zeros(1)]),
        ("nested", {"model": {"w": torch.zeros(1)}}),
        ("tensor", torch.zeros(2)),
        ("keys", {0: torch.zeros(1)}),
    ):
        torch.save(value, tmp_path / name)
        file_refusal(tmp_path / name)
    whole = tmp_path / "whole"
    write_reference_file(whole, make_model(make_arch()), make_arch())
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-100])
    file_refusal(tmp_path / "cut")


def test_a_tensor_that_is_missing_or_too_many_or_of_another_shape_is_named():
    arch = make_arch()
    tensors = to_reference(make_model(arch), arch, prefix="")
    for name in map(reference_name, weight_shapes(arch)):
        message = refused({key: tensor for key, tensor in tensors.items() if key != name}, arch)
        assert name in message
        assert "missing" in message
    more = "inner.L_level.layers.2.mlp.down_proj.weight"
    assert more in refused(tensors | {more: torch.zeros(1)}, arch)
    for name in ("lm_head.weight", "H_init", "puzzle_emb.weights", "L_level.layers.1.mlp.down_proj.weight"):
        message = refused(tensors | {f"inner.{name}": torch.zeros(9, 9)}, arch)
        assert all(word in message for word in (f"inner.{name}", "[9, 9]", str(list(tensors[f"inner.{name}"].shape))))


@pytest.mark.parametrize(("file", "config"), [("mlp", "attention"), ("separate", "mlp"), ("mlp", "separate"), ("learned", "mlp")])
def test_a_file_of_another_model_is_refused(file, config):
    source, target = make_arch(**MODELS[file]), make_arch(**MODELS[config])
    refused(to_reference(make_model(source), source), target)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recursion.variant", "single_z"),
        ("recursion.variant", "multi_scale_z"),
        ("model.registers", 1),
        ("model.mlp", "gated_norm_swiglu"),
    ],
)
def test_what_no_released_code_has_is_not_exchanged(key, value):
    arch = make_arch(**{key.partition(".")[2]: value})
    for convert in (lambda: from_reference({}, arch), lambda: to_reference(make_model(arch), arch)):
        with pytest.raises(CheckpointError, match=f"{key}={value}"):
            convert()


def urm_arch():
    arch = make_arch("single_state", mixer="attention", positions="rope", mlp="conv_swiglu")
    return replace(arch, recursion=replace(arch.recursion, n=1))


def test_names_of_the_released_urm():
    arch = urm_arch()
    block = ("self_attn.qkv_proj.weight", "self_attn.o_proj.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight")
    block += ("mlp.dwconv.weight", "mlp.dwconv.bias")
    expected = {f"inner.layers.{i}.{part}" for i in (0, 1) for part in block}
    top = ("init_hidden", "embed_tokens.embedding_weight", "lm_head.weight", "q_head.weight", "q_head.bias", "puzzle_emb.weights")
    model = make_model(arch)
    tensors = to_reference(model, arch, prefix="")
    assert tensors.keys() == expected | {f"inner.{name}" for name in top}
    assert tensors["inner.layers.0.mlp.dwconv.weight"].shape == (256, 1, 2)
    assert_same(model, from_reference(tensors, arch))
    del tensors["inner.layers.1.mlp.dwconv.bias"]
    assert "inner.layers.1.mlp.dwconv.bias is missing" in refused(tensors, arch)


def test_a_model_that_starts_at_random_has_no_initial_values():
    arch = replace(make_arch(puzzle_emb_ndim=0), latents=LatentsConfig(init="random"))
    model = make_model(arch)
    tensors = to_reference(model, arch, prefix="")
    assert not [name for name in tensors if "init" in name or "seed" in name]
    back = from_reference(tensors, arch)
    assert back.buffers == {}
    assert_same(model, back, ema=True)


@pytest.mark.parametrize(
    "settings",
    [
        ["recursion.variant=single_state", "model.mixer=attention", "model.positions=rope", "model.mlp=conv_swiglu"],
        ["latents.init=random", "recursion.damping=0.95", "model.mixer=attention", "model.positions=rope2d"],
    ],
    ids=["urm", "eqr"],
)
def test_a_checkpoint_of_those_codes_is_imported_and_exported_again(tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    overrides = ["data=sudoku_4x4", "recipe=tiny", "model.num_heads=2", "model.hidden_size=16", *settings]
    cfg = compose([*overrides, "run_name=r"])
    arch = architecture(cfg, seq_len=16, vocab_size=6, num_puzzle_identifiers=1)
    model = ModelTensors(init_weights(arch, 1), init_buffers(arch, 1), None)
    write_reference_file(Path("theirs.pt"), model, arch)
    interop.main(["import", "theirs.pt", "made", *overrides])
    interop.main(["export", "checkpoint=made", "again.pt"])
    theirs, again = (torch.load(name, weights_only=True) for name in ("theirs.pt", "again.pt"))
    assert theirs.keys() == again.keys()
    assert all(torch.equal(theirs[name], again[name]) for name in theirs)
