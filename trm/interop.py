"""Exchange weights with the released code of TRM, EqR and URM: import their checkpoints, export or publish a run's weights.

The released code saves a state_dict with torch.save. Its keys may have the prefixes of torch.compile and of the loss head
(`_orig_mod.model.`), and its EMA files hold the trained weights only. A file may also hold the state_dict under `model` or
`state_dict`, beside other things. Files are read with torch's weights-only unpickler, which cannot run code, or as safetensors.

  python -m trm.interop export checkpoint=RUN FILE                       write a run's evaluation weights for the released code
  python -m trm.interop import FILE RUN [GROUP=OPTION] [KEY=VALUE] ...   make RUN from a checkpoint file of the released code;
                                                                         then: python -m trm.evaluate checkpoint=RUN
  python -m trm.interop publish checkpoint=RUN FOLDER                    write only the evaluation weights and the settings of a run
                                                                         into a folder, which works as checkpoint=FOLDER
"""

if __name__ == "__main__":  # before what takes seconds to import
    from trm.cli import plain_command

    plain_command("trm.interop:main", __doc__)
    raise SystemExit

import io
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import Tensor

from trm.cli import compose, options
from trm.config import digest, kept, local_path, to_plain
from trm.config.overrides import override
from trm.core.architecture import Architecture, Weights, architecture
from trm.core.initial import weight_shapes
from trm.data.build import held_out_puzzles
from trm.errors import CheckpointError, ConfigError
from trm.ground.folder import CONFIG_FILE
from trm.run.checkpoint import Meta, save_checkpoint, write_checkpoint
from trm.run.saved import chosen_words, is_override, open_run, split_arguments
from trm.tasks.base import task_of
from trm.tasks.pairs import PairsTask

USE = ("hardware", "evaluate", "inference")  # the settings that say how a published network is used
REFERENCE_PREFIX = "_orig_mod.model."
_BUFFER_NAMES = {"init.z_H": "inner.H_init", "init.z_L": "inner.L_init"}
_URM_BUFFER_NAMES = {"init.z_H": "inner.init_hidden"}
# The keys under which a file may hold the model's state_dict, next to optimizers and counters; the released code uses "model"
_HOLDERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
_PUZZLE_EMBEDDING = "inner.puzzle_emb.weights"
_TOP_NAMES = {
    "embed_tokens": "inner.embed_tokens.embedding_weight",
    "embed_positions": "inner.embed_pos.embedding_weight",
    "lm_head": "inner.lm_head.weight",
    "q_head.weight": "inner.q_head.weight",
    "q_head.bias": "inner.q_head.bias",
}
_NETWORKS = {"net": "L_level.layers", "f_L": "L_level.layers", "f_H": "H_level.layers"}
_LAYERS = {
    "token_mlp.gate_up": "mlp_t.gate_up_proj.weight",
    "token_mlp.down": "mlp_t.down_proj.weight",
    "attention.qkv": "self_attn.qkv_proj.weight",
    "attention.out": "self_attn.o_proj.weight",
    "mlp.gate_up": "mlp.gate_up_proj.weight",
    "mlp.down": "mlp.down_proj.weight",
    "mlp.conv.weight": "mlp.dwconv.weight",
    "mlp.conv.bias": "mlp.dwconv.bias",
}


@dataclass(frozen=True)
class ModelTensors:
    """The tensors of one model under this project's names."""

    weights: Weights
    buffers: Weights  # init.z_H, init.z_L; empty for a file without them (EMA) and where latents start at random
    puzzle_embedding: Tensor | None  # [I, E]; None for a model or a file without it


def reference_name(name: str, variant: str = "trm") -> str:
    """The reference's name (without prefix) of one of this project's weights or buffers; for variant single_state it is URM's."""
    names = _TOP_NAMES | buffer_names(variant)
    if name in names:
        return names[name]
    network, layer, rest = name.split(".", 2)
    return f"inner.{'layers' if variant == 'single_state' else _NETWORKS[network]}.{layer}.{_LAYERS[rest]}"


def buffer_names(variant: str) -> dict[str, str]:
    """The reference's names of the latents' initial values."""
    return _URM_BUFFER_NAMES if variant == "single_state" else _BUFFER_NAMES


def _check_variant(arch: Architecture) -> None:
    if arch.latent_names != ("z_H", "z_L") and arch.recursion.variant != "single_state":
        raise CheckpointError(
            f"recursion.variant={arch.recursion.variant} has other latents than the reference's model: only variants with z_H and "
            "z_L, and single_state, can be exchanged"
        )
    for key, value, none in (("registers", arch.model.registers, 0), ("mlp", arch.model.mlp, "swiglu")):
        if value not in (none, "conv_swiglu"):
            raise CheckpointError(f"model.{key}={value}: no known released code has it: only {none} can be exchanged")


def from_reference(tensors: Mapping[str, Tensor], arch: Architecture, source: str = "state_dict") -> ModelTensors:
    """Tensors under the reference's names, with or without its prefixes, as this project's tensors for `arch`.

    Every weight must be there with the right shape and nothing may be left over; latents' initial values and the puzzle embedding
    may be absent (EMA files). Raises CheckpointError naming `source` and the tensor.
    """
    _check_variant(arch)
    variant = arch.recursion.variant
    prefixes = re.compile(r"^((_orig_mod|model|module|net|network|_forward_module)\.)+")
    left = {prefixes.sub("", name): tensor for name, tensor in tensors.items()}

    def taken(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = left.pop(name)
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                f"{source}: tensor {name} is {tensor.dtype}, {tensor.layout} on {tensor.device}: not plain weights"
            )
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{source}: tensor {name} has shape {list(tensor.shape)}, the configuration needs {list(shape)}")
        return tensor.to(dtype)

    weights: Weights = {}
    for name, shape in weight_shapes(arch).items():
        theirs = reference_name(name, variant)
        if theirs not in left:
            raise CheckpointError(f"{source}: tensor {theirs} is missing: does the configuration (model=, data=) fit this file?")
        weights[name] = taken(theirs, shape, arch.master_dtype)
    names = {name: theirs for name, theirs in buffer_names(variant).items() if theirs in left}
    buffers = {name: taken(theirs, (arch.model.hidden_size,), arch.dtype) for name, theirs in names.items()}
    table = None
    if arch.model.puzzle_emb_ndim and _PUZZLE_EMBEDDING in left:
        table = taken(_PUZZLE_EMBEDDING, (arch.num_puzzle_identifiers, arch.model.puzzle_emb_ndim), arch.master_dtype)
    # the reference's per-batch copies of puzzle vectors are buffers of its optimizer, not weights
    left = {name: tensor for name, tensor in left.items() if not name.startswith("inner.puzzle_emb.local_")}
    if left:
        raise CheckpointError(f"{source}: tensor {min(left)} has no place in this configuration (model=, recursion=)")
    return ModelTensors(weights, buffers, table)


def to_reference(model: ModelTensors, arch: Architecture, prefix: str = REFERENCE_PREFIX) -> dict[str, Tensor]:
    """This project's tensors as a state_dict of the reference's model, loadable with strict=True when nothing is absent."""
    _check_variant(arch)
    variant = arch.recursion.variant
    buffers = {name: tensor for name, tensor in model.buffers.items() if name in buffer_names(variant)}
    tensors = {reference_name(name, variant): tensor for name, tensor in (model.weights | buffers).items()}
    if model.puzzle_embedding is not None:
        tensors[_PUZZLE_EMBEDDING] = model.puzzle_embedding
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def read_reference_file(path: Path, arch: Architecture) -> ModelTensors:
    """Read a checkpoint file of the reference: a state_dict from torch.save or safetensors, alone or with other things."""
    try:
        packed = path.suffix == ".safetensors"
        content = safetensors.torch.load_file(path) if packed else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: is a folder: name the file in it, such as step_65104") from error
    except Exception as error:  # torch.load raises many kinds for a file that is no checkpoint
        raise CheckpointError(
            f"{path}: not a checkpoint that torch can read safely ({type(error).__name__}): torch.save its state_dict alone"
        ) from error
    source, tensors = str(path), content
    while isinstance(tensors, dict) and not any(isinstance(value, Tensor) for value in tensors.values()):
        name = next((name for name in _HOLDERS if isinstance(tensors.get(name), dict)), None)
        if name is None:
            break
        source, tensors = f"{source}: {name}", tensors[name]
    named = isinstance(tensors, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items())
    if not (named and tensors):
        keys = f" ({', '.join(map(str, list(tensors)[:5]))})" if isinstance(tensors, dict) else ""
        raise CheckpointError(f"{source}: holds no state_dict of tensors{keys}: torch.save the state_dict alone")
    return from_reference(tensors, arch, source=source)


def write_reference_file(path: Path, model: ModelTensors, arch: Architecture) -> None:
    """Write a checkpoint file that the reference loads."""
    content = io.BytesIO()
    torch.save(to_reference(model, arch), content)
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written to ({error.strerror}): choose another file") from error


def export_run(arguments: list[str]) -> None:
    """`export checkpoint=RUN FILE`: the weights that the run's evaluation uses, for the released code."""
    path, overrides, rest = split_arguments(arguments)
    if len(rest) != 1:
        raise ConfigError("export needs checkpoint=RUN and one FILE to write")
    run = open_run(path, overrides)
    model = ModelTensors(run.eval_weights, run.buffers, run.puzzle_embedding)
    write_reference_file(Path(local_path("FILE", rest[0])), model, run.arch)
    print(f"wrote {rest[0]}: {'EMA' if run.uses_ema else 'training'} weights of {run.folder}")


def publish(arguments: list[str]) -> None:
    """`publish checkpoint=RUN FOLDER [KEY=VALUE ...]`: a checkpoint of what evaluation needs, without the training state.

    `hardware`, `evaluate`, `inference` and their keys say how it will be used; every other setting stays the run's own.
    """
    path, overrides, rest = split_arguments(arguments)
    if len(rest) != 1:
        raise ConfigError("publish needs checkpoint=RUN and one FOLDER to make")
    for word in (word for word in overrides if word.partition("=")[0].partition(".")[0] not in USE):
        raise ConfigError(f"{word}: a published checkpoint keeps its run's settings, except {', '.join(USE)}: leave it out")
    run, folder = open_run(path, overrides), Path(local_path("FOLDER", rest[0]))
    settings = to_plain(run.cfg)
    caveats = None if run.meta.caveats is None else run.meta.caveats + chosen_words(run)
    meta = replace(run.meta, wandb_run_id=None, caveats=caveats, config=run.meta.config | {group: settings[group] for group in USE})
    if os.path.lexists(folder):
        raise ConfigError(f"{folder}: exists already: choose another folder, or remove it")
    tensors = {f"{'ema' if run.uses_ema else 'weights'}/{name}": tensor for name, tensor in run.eval_weights.items()}
    tensors |= {f"fixed/{name}": tensor for name, tensor in run.buffers.items() if name.startswith("init.")}
    if run.puzzle_embedding is not None:
        tensors["puzzle_embedding"] = run.puzzle_embedding
    try:
        write_checkpoint(folder, tensors, meta)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written to ({error.strerror}): choose another folder") from error
    print(f"made {folder}: {shlex.join(['python', '-m', 'trm.evaluate', f'checkpoint={folder}'])}")


def import_file(arguments: list[str]) -> None:
    """`import FILE RUN OVERRIDES`: a run folder whose checkpoint (step 0) holds the weights of FILE, to be evaluated here."""
    overrides = [a for a in arguments if is_override(a)]
    names = [a for a in arguments if a not in overrides]
    if len(names) != 2:
        raise ConfigError("import needs FILE (the released code's checkpoint) and RUN (the folder to make), then overrides")
    file, run_dir = (Path(local_path("import", name)) for name in names)
    make_run(file, run_dir, overrides)
    print(f"made {run_dir}: {shlex.join(['python', '-m', 'trm.evaluate', f'checkpoint={run_dir}'])}")


def make_run(file: Path, run_dir: Path, overrides: list[str]) -> None:
    """Make a run folder of the weights in a file of the released code and of settings. Raises UserError."""
    if os.path.lexists(run_dir):
        raise ConfigError(f"{run_dir}: exists already: choose another folder")
    cfg = compose([*overrides, override("run_name", run_dir.name)])
    task = task_of(cfg.data)
    sizes = task.facts.sizes
    if isinstance(task, PairsTask) and cfg.model.puzzle_emb_ndim:  # the dataset says how many identifiers there are
        sizes = held_out_puzzles(cfg.data).metadata.sizes
    arch = architecture(cfg, **sizes)
    model = read_reference_file(file, arch)
    tensors = {f"weights/{name}": tensor for name, tensor in model.weights.items()}
    if not model.buffers and cfg.latents.init == "fixed":
        missing = " and ".join(buffer_names(cfg.recursion.variant).values())
        raise CheckpointError(
            f"{file}: holds no {missing} (an EMA file?): import a full state_dict, or set latents.init=random for a model that "
            "starts from random latents (EqR)"
        )
    tensors |= {f"fixed/{name}": tensor for name, tensor in model.buffers.items()}
    if model.puzzle_embedding is not None:
        tensors["puzzle_embedding"] = model.puzzle_embedding
    elif arch.model.puzzle_emb_ndim:
        raise CheckpointError(f"{file}: holds no {_PUZZLE_EMBEDDING}: import a full state_dict, or set model.puzzle_emb_ndim=0")
    plain = to_plain(cfg)
    meta = Meta(step=0, config=kept(plain), digest=digest(cfg), data=sizes)
    plain["data"]["path"] = str(Path(cfg.data.path).resolve())
    try:
        save_checkpoint(run_dir, tensors, meta, keep=1)
        OmegaConf.save(OmegaConf.create(plain), run_dir / CONFIG_FILE)
    except OSError as error:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise ConfigError(f"{run_dir}: cannot be written to ({error.strerror}): choose another folder") from error


def main(arguments: list[str]) -> None:
    """The command: `export`, `import` or `publish`."""
    actions = {"export": export_run, "import": import_file, "publish": publish}
    if arguments[0] not in actions:
        raise ConfigError(f"{arguments[0]}: not understood: the first argument is export, import or publish")
    actions[arguments[0]](options("trm.interop", arguments[1:]).rest)
