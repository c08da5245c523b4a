"""Loading a parity case (NAME.json + NAME.npz) as this project's settings, state and batches.

docs/explanation/what_is_computed.md says what is compared.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trm.backends import Runtime
from trm.backends.native import NativeRuntime
from trm.config import ModelConfig, OptimizerConfig, RecursionConfig
from trm.core.architecture import Architecture
from trm.core.attention import ATTENTION
from trm.core.initial import init_buffers
from trm.core.optimizers import OPTIMIZERS
from trm.core.step import StepConfig, TrainState, empty_carry
from trm.interop import ModelTensors, from_reference
from trm.run.experiment import on_devices


@dataclass
class GoldenCase:
    settings: dict
    arrays: dict[str, np.ndarray]
    dtype: torch.dtype
    runtime: Runtime | None  # whose products and blocks the network takes; None = plain torch's
    attention: str = "scores"
    token_multiple: int = 1

    @property
    def arch(self) -> Architecture:
        s = self.settings
        urm, positions = s.get("source") == "urm", s["pos_encodings"]
        arch = Architecture(
            model=ModelConfig(
                mixer=s["mixer"] if "mixer" in s else "mlp" if s["mlp_t"] else "attention",
                mlp="conv_swiglu" if urm else "swiglu",
                hidden_size=s["hidden_size"],
                num_layers=s["layers"] if "layers" in s else s["L_layers"],
                num_heads=s["num_heads"],
                expansion=s["expansion"],
                positions=positions if positions in ("rope", "rope2d", "learned") else "none",
                rope_theta=s["rope_theta"],
                rms_norm_eps=s["rms_norm_eps"],
                puzzle_emb_ndim=s["puzzle_emb_ndim"],
                puzzle_emb_len=s["puzzle_emb_len"],
                loss="softmax" if s.get("loss_type", "stablemax").startswith("softmax") else "stablemax",
            ),
            recursion=RecursionConfig(
                variant="single_state" if urm else "trm",
                T=s["H_cycles"],
                n=s["L_cycles"],
                n_sup=s["halt_max_steps"],
                act_continue=not s.get("no_ACT_continue", True),
                damping=s.get("damping", 1.0),
                noise=s.get("noise", 0.0),
            ),
            seq_len=s["seq_len"],
            vocab_size=s["vocab_size"],
            num_puzzle_identifiers=s["num_puzzle_identifiers"],
            dtype=self.dtype,
            loss_dtype=torch.float64,
            attend=ATTENTION[self.attention],
            token_multiple=self.token_multiple,
        )
        return arch if self.runtime is None else on_devices(arch, self.runtime)

    @property
    def step_config(self) -> StepConfig:
        s = self.settings
        optimizer = OptimizerConfig(
            lr=s["lr"],
            weight_decay=s["weight_decay"],
            beta1=s["beta1"],
            beta2=s["beta2"],
            warmup_steps=s["lr_warmup_steps"],
            puzzle_emb_lr=s["puzzle_emb_lr"],
            puzzle_emb_weight_decay=s["puzzle_emb_weight_decay"],
        )
        return StepConfig(self.arch, optimizer, s["ema_rate"], s["train_steps"])

    def tensors(self, prefix: str) -> ModelTensors:
        """The model saved under `prefix` ("init/", "final/", "ema/", "grad1/") in this project's names."""
        named = {k.removeprefix(prefix): torch.tensor(v) for k, v in self.arrays.items() if k.startswith(prefix)}
        return from_reference(named, self.arch, source=prefix)

    def buffers(self) -> dict[str, torch.Tensor]:
        """The latents' initial values of the case, with the rotary tables computed here; EqR's cases start at zero."""
        buffers = init_buffers(self.arch, seed=0) | self.tensors("init/").buffers
        if self.settings.get("latent_std") == 0:
            buffers |= {name: torch.zeros_like(start) for name, start in buffers.items() if name.startswith("init.")}
        return buffers

    def state(self) -> TrainState:
        arch, model = self.arch, self.tensors("init/")
        return TrainState(
            weights=model.weights,
            optimizer=OPTIMIZERS["adam_atan2"].init(self.step_config.optimizer, model.weights),
            ema={k: w.clone() for k, w in model.weights.items()},
            puzzle_embedding=model.puzzle_embedding,
            carry=empty_carry(arch, self.buffers(), self.settings["batch_size"]),
            step=torch.zeros((), dtype=torch.int32),
        )

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Training batch of a 0-based step, without exploration."""
        names = ("inputs", "labels", "puzzle_identifiers")
        batch = {k: self.arrays[f"train/{k}"][step].astype(np.int32) for k in names}
        return batch | {"min_steps": np.zeros(self.settings["batch_size"], np.int32)}

    def eval_batch(self) -> dict[str, np.ndarray]:
        return {k: self.arrays[f"eval/{k}"].astype(np.int32) for k in ("inputs", "labels", "puzzle_identifiers")}


def load_case(
    path: Path,
    dtype: torch.dtype = torch.float64,
    runtime: Runtime | None = None,
    attention: str | None = None,
    token_multiple: int | None = None,
) -> GoldenCase:
    """`attention` and `token_multiple` are as in `hardware`; None = as auto has them for so few tokens."""
    if token_multiple is None:
        on_gpu = isinstance(runtime, NativeRuntime) and runtime._device.type == "cuda"
        token_multiple = runtime.can.token_multiple["cuda"] if on_gpu else 1
    native = isinstance(runtime, NativeRuntime) and dtype != torch.float64
    attention = attention or ("fused" if native else "scores")
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        settings = json.loads(path.with_suffix(".json").read_text())
        return GoldenCase(settings, dict(arrays), dtype, runtime, attention, token_multiple)
