"""The same model and training step written the ordinary way: an nn.Module, loss.backward(), updates in place, all of it eager.

This is the baseline of `python -m trm.bench step`, not a way to train: it knows the paper's recursion and float32 (float64 in the
tests, which compare a step with trm/core/step.py) and nothing else.

Shape legend: B rows, C cells, L tokens, D hidden size, H heads, V vocabulary.
"""

import copy
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm.config import IGNORE_LABEL, Config
from trm.core.model import Architecture, Weights, swiglu_width
from trm.core.optim import learning_rate
from trm.core.step import TrainState
from trm.errors import ConfigError


def check_supported(cfg: Config) -> None:
    """Raises ConfigError for settings that the baseline does not have."""
    for key, value, only in (
        ("recursion.variant", cfg.recursion.variant, "trm"),
        ("recursion.act_continue", cfg.recursion.act_continue, False),
        ("model.separate_networks", cfg.model.separate_networks, False),
        ("hardware.dtype", cfg.hardware.dtype, "float32"),
    ):
        if value != only:
            raise ConfigError(f"{key}={value}: the way ordinary of bench knows {key}={only} alone: leave it out of --ways")


# -------------------------------------------------------------------------------------------------------------------- network


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class SwiGLU(nn.Module):
    """down(silu(gate) * up), gate and up in one layer."""

    def __init__(self, features: int, expansion: float) -> None:
        super().__init__()
        width = swiglu_width(features, expansion)
        self.gate_up = nn.Linear(features, 2 * width, bias=False)
        self.down = nn.Linear(width, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] -> [..., features]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Attention(nn.Module):
    """Self-attention with q, k and v in one layer."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)  # [B, H, L, D/H]
        if rope is not None:
            q, k = (t * rope[0] + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) * rope[1] for t in (q, k))
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D))
        return out


class Block(nn.Module):
    """Token mixer and channel MLP, each with a residual and a norm after it."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        model = arch.model
        self.eps = model.rms_norm_eps
        self.token_mlp = SwiGLU(arch.num_tokens, model.expansion) if model.mixer == "mlp" else None
        self.attention = None if model.mixer == "mlp" else Attention(model.hidden_size, model.num_heads)
        self.mlp = SwiGLU(model.hidden_size, model.expansion)

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        if self.token_mlp is not None:
            t = h.transpose(1, 2)
            h = rms_norm(t + self.token_mlp(t), self.eps).transpose(1, 2)
        if self.attention is not None:
            h = rms_norm(h + self.attention(h, rope), self.eps)
        return rms_norm(h + self.mlp(h), self.eps)


class Model(nn.Module):
    """Embeddings, the recursive network, and the two heads; weights have the names of trm/core/model.py."""

    def __init__(self, arch: Architecture, weights: Weights, fixed: Weights) -> None:
        super().__init__()
        model, D = arch.model, arch.model.hidden_size
        self.T, self.n, self.prefix_len = arch.recursion.T, arch.recursion.n, model.prefix_len
        self.embed_tokens = nn.Embedding(arch.vocab_size, D)
        self.embed_positions = nn.Parameter(torch.empty(arch.num_tokens, D)) if model.positions == "learned" else None
        self.net = nn.ModuleList([Block(arch) for _ in range(model.num_layers)])
        self.lm_head = nn.Linear(D, arch.vocab_size, bias=False)
        self.q_head = nn.Linear(D, 2)
        self.rope = (fixed["rope.cos"], fixed["rope.sin"]) if model.positions == "rope" else None
        self.to(arch.dtype)
        own = self.state_dict()
        self.load_state_dict({name if name in own else f"{name}.weight": weight for name, weight in weights.items()})

    def weights(self) -> Weights:
        """The weights under the names of trm/core/model.py."""
        return {name if name.startswith("q_head") else name.removesuffix(".weight"): p for name, p in self.named_parameters()}

    def net_once(self, h: Tensor) -> Tensor:
        """One pass of the network."""
        for block in self.net:
            h = block(h, self.rope)
        return h

    def latent_recursion(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """n updates of z_L and one of z_H."""
        for _ in range(self.n):
            z_L = self.net_once(z_L + (z_H + x))
        return self.net_once(z_H + z_L), z_L

    def forward(self, z_H: Tensor, z_L: Tensor, inputs: Tensor, puzzle: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One supervision step: z_H and z_L [B, L, D], logits [B, C, V], q_halt [B]."""
        x = self.embed_tokens(inputs)
        D = x.shape[-1]
        if puzzle is not None:
            prefix = F.pad(puzzle, (0, self.prefix_len * D - puzzle.shape[-1])).view(-1, self.prefix_len, D)
            x = torch.cat((prefix, x), dim=1)
        if self.embed_positions is not None:
            x = math.sqrt(0.5) * (x + self.embed_positions)
        x = math.sqrt(D) * x
        with torch.no_grad():
            for _ in range(self.T - 1):
                z_H, z_L = self.latent_recursion(z_H, z_L, x)
        z_H, z_L = self.latent_recursion(z_H, z_L, x)
        return z_H, z_L, self.lm_head(z_H)[:, self.prefix_len :], self.q_head(z_H[:, 0])[:, 0]


# --------------------------------------------------------------------------------------------------------- loss and optimizer


def cell_losses(logits: Tensor, labels: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy over the labelled cells of each row, [B]."""
    mask = labels != IGNORE_LABEL
    target = torch.where(mask, labels, 0).long()
    logits = logits.to(dtype)
    if kind == "stablemax":
        s = torch.where(logits < 0, 1 / (1 - logits), logits + 1)
        log_share = torch.log(s / s.sum(-1, keepdim=True))
    else:
        log_share = F.log_softmax(logits, dim=-1)
    losses = torch.where(mask, -log_share.gather(-1, target.unsqueeze(-1)).squeeze(-1), 0)
    return losses.sum(-1) / mask.sum(-1).clamp_min(1)


class AdamATan2(torch.optim.Optimizer):
    """arXiv 2407.05872, with decay before the update."""

    def __init__(self, params: Iterable[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state["step"] += 1
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                scale = state["v"].sqrt().div_(math.sqrt(1 - beta2 ** state["step"]))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(torch.atan2(state["m"], scale), alpha=-lr / (1 - beta1 ** state["step"]))


# ------------------------------------------------------------------------------------------------------------------- training


class Trainer:
    """The training loop's state: model, EMA copy, optimizer, carry and sums of metrics."""

    def __init__(self, cfg: Config, arch: Architecture, state: TrainState, fixed: Weights, total_steps: int) -> None:
        """Starts from the values of `state` (on the CPU), which must be that before the first step."""
        self.cfg, self.arch, self.total_steps = cfg, arch, total_steps
        self.model = Model(arch, state.weights, fixed)
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if cfg.ema.enabled else None
        chosen, betas = cfg.optimizer, (cfg.optimizer.beta1, cfg.optimizer.beta2)
        self.optimizer: torch.optim.Optimizer
        if chosen.name == "adam_atan2":
            self.optimizer = AdamATan2(self.model.parameters(), chosen.lr, betas, chosen.weight_decay)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), chosen.lr, betas, chosen.eps, chosen.weight_decay)
        self.puzzle_embedding = None if state.puzzle_embedding is None else state.puzzle_embedding.clone()
        self.initial = {"z_H": fixed["init.z_H"], "z_L": fixed["init.z_L"]}
        self.carry = self.empty_carry(cfg.train.global_batch_size)
        self.steps_done = 0
        self.sums: dict[str, Tensor] = {}

    def empty_carry(self, batch_size: int) -> dict[str, Tensor]:
        """All rows halted, so that every row takes the batch's."""
        latent = torch.zeros(batch_size, self.arch.num_tokens, self.arch.model.hidden_size, dtype=self.arch.dtype)
        cells = torch.zeros(batch_size, self.arch.seq_len, dtype=torch.int32)
        rows = torch.zeros(batch_size, dtype=torch.int32)
        return {
            "z_H": latent, "z_L": latent, "inputs": cells, "labels": cells, "puzzle_identifiers": rows,
            "steps": rows, "halted": rows == 0,
        }  # fmt: skip

    def refill(self, carry: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows that halted take the batch's."""
        halted = carry["halted"]
        fresh = {**self.initial, **batch, "steps": torch.zeros_like(carry["steps"])}
        return {
            name: value if name == "halted" else torch.where(halted.view(-1, *[1] * (value.ndim - 1)), fresh[name], value)
            for name, value in carry.items()
        }

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One training step; returns the loss over the global batch."""
        carry = self.refill(self.carry, batch)
        identifiers, table = carry["puzzle_identifiers"].long(), self.puzzle_embedding
        puzzle = None if table is None else table[identifiers].requires_grad_()
        z_H, z_L, logits, q_halt = self.model(carry["z_H"], carry["z_L"], carry["inputs"], puzzle)
        steps = carry["steps"] + 1
        n_sup = self.cfg.recursion.n_sup
        halted = steps >= n_sup
        if n_sup > 1:
            halted = (halted | (q_halt.detach() > 0)) & (steps >= batch["min_steps"])
        lm_loss, q_loss = self.losses(logits, q_halt, carry["labels"], steps, halted)
        loss = (lm_loss + 0.5 * q_loss) / len(steps)
        loss.backward()  # type: ignore[no-untyped-call]

        self.steps_done += 1
        t = torch.tensor(float(self.steps_done), dtype=self.arch.master_dtype)
        chosen = self.cfg.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(chosen.lr, t, chosen, self.total_steps).item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if table is not None and puzzle is not None and puzzle.grad is not None:
            present, of_row = torch.unique(identifiers, return_inverse=True)
            summed = torch.zeros(len(present), table.shape[1], dtype=table.dtype).index_add_(0, of_row, puzzle.grad)
            lr = learning_rate(chosen.puzzle_emb_lr, t, chosen, self.total_steps).item()
            table[present] = table[present] * (1 - lr * chosen.puzzle_emb_weight_decay) - lr * summed.sign()
        if self.ema is not None:
            with torch.no_grad():
                for average, weight in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                    average.mul_(self.cfg.ema.rate).add_(weight, alpha=1 - self.cfg.ema.rate)
        self.carry = carry | {"z_H": z_H.detach(), "z_L": z_L.detach(), "steps": steps, "halted": halted}
        return loss.detach()

    @torch.no_grad()
    def evaluation_step(self, carry: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One supervision step without training: the new carry, of which no row has halted."""
        carry = self.refill(carry, batch)
        puzzle = None if self.puzzle_embedding is None else self.puzzle_embedding[carry["puzzle_identifiers"].long()]
        z_H, z_L, logits, q_halt = (self.ema or self.model)(carry["z_H"], carry["z_L"], carry["inputs"], puzzle)
        steps = carry["steps"] + 1
        self.losses(logits, q_halt, carry["labels"], steps, torch.ones_like(carry["halted"]))
        return carry | {"z_H": z_H, "z_L": z_L, "steps": steps, "halted": torch.zeros_like(carry["halted"])}

    def losses(self, logits: Tensor, q_halt: Tensor, labels: Tensor, steps: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """The two losses summed over the rows; adds the step's metrics to the sums."""
        labelled = labels != IGNORE_LABEL
        right = labelled & (logits.detach().argmax(-1) == labels)
        num_labelled, num_right = labelled.sum(-1), right.sum(-1)
        exact = num_right == num_labelled
        lm_loss = cell_losses(logits, labels, self.arch.model.loss, self.arch.loss_dtype).sum()
        q_loss = F.binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="sum")
        counted = counted & (num_labelled > 0)
        metrics = {
            "count": counted.sum(),
            "accuracy": torch.where(counted, num_right.to(q_halt.dtype) / num_labelled.clamp_min(1), 0).sum(),
            "exact_accuracy": (counted & exact).sum(),
            "q_halt_accuracy": (counted & ((q_halt.detach() >= 0) == exact)).sum(),
            "steps": torch.where(counted, steps, 0).sum(),
            "lm_loss": lm_loss.detach(),
            "q_halt_loss": q_loss.detach(),
        }
        self.sums = {name: self.sums.get(name, 0) + value for name, value in metrics.items()}
        return lm_loss, q_loss
