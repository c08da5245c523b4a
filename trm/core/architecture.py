"""All that determines the shapes and the arithmetic of the network, from the settings and the sizes of the data."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from trm.config import Config, LatentsConfig, ModelConfig, ObjectiveConfig, RecursionConfig, draws_numbers
from trm.core.attention import Attend, attention_for, scores
from trm.core.recursion import Variant
from trm.core.variants import VARIANTS
from trm.ground.share import WHOLE, Share

Weights = dict[str, Tensor]
Blocks = Callable[..., Tensor]


@dataclass(frozen=True)
class Architecture:
    """All that determines the shapes and the arithmetic of the network."""

    model: ModelConfig
    recursion: RecursionConfig
    seq_len: int  # C
    vocab_size: int  # V
    num_puzzle_identifiers: int  # I
    dtype: torch.dtype  # forward dtype
    loss_dtype: torch.dtype
    num_devices: int = 1  # that the program's rows are split over
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    attend: Attend = scores
    token_multiple: int = 1  # of tokens in the token mixer's products
    # what the backend puts in the place of plain torch (trm/backends/base.py)
    linear: Callable[[Tensor, Tensor], Tensor] = F.linear
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    compile_block: Callable[[Blocks], Blocks] = lambda blocks: blocks
    replicate_rows: Callable[[Tensor], Tensor] = lambda rows: rows
    share: Share = WHOLE  # which rows of the global batch the program sees
    torch_kernels: bool = True  # whether torch's own kernels compute

    @property
    def master_dtype(self) -> torch.dtype:
        """Dtype of weights, moments and EMA: at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def num_tokens(self) -> int:
        """L: prefix and cells."""
        return self.model.prefix_len + self.seq_len

    @property
    def variant(self) -> Variant:
        """The recursion, with what it owns."""
        return VARIANTS[self.recursion.variant]

    @property
    def latent_names(self) -> tuple[str, ...]:
        """The latents of the recursion variant; the first is decoded."""
        return self.variant.latents(self.recursion.n)

    @property
    def is_random(self) -> bool:
        """Whether its forward pass draws random numbers."""
        return draws_numbers(self.latents, self.recursion)


def architecture(cfg: Config, *, seq_len: int, vocab_size: int, num_puzzle_identifiers: int) -> Architecture:
    """The architecture that a config describes for a dataset of these sizes."""
    dtype = getattr(torch, cfg.hardware.dtype)
    return Architecture(
        model=cfg.model,
        recursion=cfg.recursion,
        latents=cfg.latents,
        objective=cfg.objective,
        seq_len=seq_len,
        vocab_size=vocab_size,
        num_puzzle_identifiers=num_puzzle_identifiers,
        dtype=dtype,
        loss_dtype=getattr(torch, cfg.hardware.loss_dtype),
        num_devices=1 if cfg.hardware.can.ranks else cfg.hardware.devices,
        attend=attention_for(cfg.hardware, cfg.model.prefix_len + seq_len),
        token_multiple=cfg.hardware.token_multiple or cfg.hardware.can.token_multiple.get(cfg.hardware.platform, 1),
    )
