"""The same model and training step written the ordinary way: an nn.Module, loss.backward(), updates in place, all of it eager.

The oracle of tests/test_step.py, and the baseline of `python -m trm.bench step`; not a way to train. It knows every recursion, both
losses and both Adams, not muon, clipping and weighted supervision. It can be compiled as the released code is, its forward pass as
one graph.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm.config import IGNORE_LABEL
from trm.core.architecture import Architecture, Weights
from trm.core.initial import swiglu_width
from trm.core.optim import learning_rate
from trm.core.step import StepConfig, TrainState

Latents = dict[str, Tensor]


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
            q, k = ((t * rope[0] + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) * rope[1]).to(v.dtype) for t in (q, k))
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

    def __init__(self, arch: Architecture, weights: Weights, buffers: Weights) -> None:
        super().__init__()
        model, recursion, D = arch.model, arch.recursion, arch.model.hidden_size
        self.prefix_len = model.prefix_len
        self.embed_tokens = nn.Embedding(arch.vocab_size, D)
        self.embed_positions = nn.Parameter(torch.empty(arch.num_tokens, D)) if model.positions == "learned" else None
        for name in ("f_L", "f_H") if model.separate_networks else ("net",):
            setattr(self, name, nn.ModuleList([Block(arch) for _ in range(model.num_layers)]))
        self.lm_head = nn.Linear(D, arch.vocab_size, bias=False)
        self.q_head = nn.Linear(D, 2)
        self.rope = (buffers["rope.cos"], buffers["rope.sin"]) if model.positions == "rope" else None
        # the latents that n updates of a latent recursion rewrite, from the sum of all and the question; then z_H without it
        reasoning = {"single_z": ["z_H"] * recursion.n, "multi_scale_z": [f"z_L{i}" for i in range(recursion.n)]}
        self.updates = [*reasoning.get(recursion.variant, ["z_L"] * recursion.n), "answer"] * recursion.T
        self.with_gradient = 2 if recursion.variant == "one_step_gradient" else recursion.n + 1
        self.to(arch.master_dtype)
        own = self.state_dict()
        self.load_state_dict({name if name in own else f"{name}.weight": weight for name, weight in weights.items()})

    def weights(self) -> Weights:
        """The weights under the names of trm/core/model.py."""
        return {name if name.startswith("q_head") else name.removesuffix(".weight"): p for name, p in self.named_parameters()}

    def net_once(self, name: str, h: Tensor) -> Tensor:
        """One pass of a network."""
        for block in getattr(self, name if hasattr(self, name) else "net"):
            h = block(h, self.rope)
        return h

    def forward(self, latents: Latents, inputs: Tensor, puzzle: Tensor | None) -> tuple[Latents, Tensor, Tensor, Tensor]:
        """One supervision step: latents [B, L, D], logits [B, C, V], q_halt and q_continue [B]."""
        x = self.embed_tokens(inputs)
        D = x.shape[-1]
        if puzzle is not None:
            prefix = F.pad(puzzle, (0, self.prefix_len * D - puzzle.shape[-1])).view(-1, self.prefix_len, D)
            x = torch.cat((prefix, x), dim=1)
        if self.embed_positions is not None:
            x = math.sqrt(0.5) * (x + self.embed_positions)
        x = math.sqrt(D) * x
        latents, training = dict(latents), torch.is_grad_enabled()
        for left, name in zip(range(len(self.updates), 0, -1), self.updates, strict=True):
            with torch.set_grad_enabled(training and left <= self.with_gradient):
                first, *others = latents.values()
                total = sum(others, first)
                if name == "answer":
                    latents["z_H"] = self.net_once("f_H", total)
                else:
                    latents[name] = self.net_once("f_L", total + x)
        q = self.q_head(latents["z_H"][:, 0])
        return latents, self.lm_head(latents["z_H"])[:, self.prefix_len :], q[:, 0], q[:, 1]


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

    def __init__(
        self, cfg: StepConfig, state: TrainState, buffers: Weights, device: str = "cpu", compiler: Callable[..., Any] = lambda f: f
    ) -> None:
        """Starts from the values of `state` (on the CPU), which must be that before the first step. `compiler` is torch.compile."""
        self.cfg, self.arch, self.device, chosen = cfg, cfg.arch, device, cfg.optimizer
        buffers = {name: value.to(device) for name, value in buffers.items()}
        self.model = Model(cfg.arch, state.weights, buffers).to(device)
        self.forward, self.cell_losses = compiler(self.forward), compiler(cell_losses)  # type: ignore[method-assign]
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if state.ema else None
        betas = (chosen.beta1, chosen.beta2)
        self.optimizer: torch.optim.Optimizer
        if chosen.name == "adam_atan2":
            self.optimizer = AdamATan2(self.model.parameters(), chosen.lr, betas, chosen.weight_decay)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), chosen.lr, betas, chosen.eps, chosen.weight_decay)
        self.puzzle_embedding = None if state.puzzle_embedding is None else state.puzzle_embedding.to(device, copy=True)
        self.initial = {name.removeprefix("init."): value for name, value in buffers.items() if name.startswith("init.")}
        self.carry = self.empty_carry(len(state.carry.halted))
        self.steps_done = 0
        self.metrics: dict[str, Tensor] = {}  # of the last step
        self.sums: dict[str, Tensor] = {}

    def forward(
        self, model: nn.Module, latents: Latents, inputs: Tensor, puzzle: Tensor | None
    ) -> tuple[Latents, Tensor, Tensor, Tensor]:
        """The model with its weights in the forward dtype; the halting values are widened again."""
        narrow, wide = self.arch.dtype, self.arch.master_dtype
        if narrow == wide:
            return model(latents, inputs, puzzle)  # type: ignore[no-any-return]
        weights = {name: weight.to(narrow) for name, weight in model.named_parameters()}
        given = (latents, inputs, None if puzzle is None else puzzle.to(narrow))
        latents, logits, q_halt, q_continue = torch.func.functional_call(model, weights, given)
        return latents, logits, q_halt.to(wide), q_continue.to(wide)

    def empty_carry(self, batch_size: int) -> dict[str, Tensor]:
        """All rows halted, so that every row takes the batch's."""
        shape = (batch_size, self.arch.num_tokens, self.arch.model.hidden_size)
        latent = torch.zeros(shape, dtype=self.arch.dtype, device=self.device)
        cells = torch.zeros(batch_size, self.arch.seq_len, dtype=torch.int32, device=self.device)
        rows = torch.zeros(batch_size, dtype=torch.int32, device=self.device)
        own = {"inputs": cells, "labels": cells, "puzzle_identifiers": rows, "steps": rows, "halted": rows == 0}
        return dict.fromkeys(self.initial, latent) | own

    def reset_carry(self, carry: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows that halted take the batch's."""
        halted = carry["halted"]
        fresh = {**self.initial, **batch, "steps": torch.zeros_like(carry["steps"])}
        return {
            name: value if name == "halted" else torch.where(halted.view(-1, *[1] * (value.ndim - 1)), fresh[name], value)
            for name, value in carry.items()
        }

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One training step; returns the loss over the global batch. Gradients stay until the next step."""
        recursion = self.arch.recursion
        carry = self.reset_carry(self.carry, batch)
        identifiers, table = carry["puzzle_identifiers"].long(), self.puzzle_embedding
        puzzle = None if table is None else table[identifiers].requires_grad_()
        before = {name: carry[name] for name in self.initial}
        latents, logits, q_halt, q_continue = self.forward(self.model, before, carry["inputs"], puzzle)
        latents = {name: z.detach() for name, z in latents.items()}
        steps = carry["steps"] + 1
        last = halted = steps >= recursion.n_sup
        if recursion.n_sup > 1:
            wants = q_halt > q_continue if recursion.act_continue else q_halt > 0
            halted = (last | wants.detach()) & (steps >= batch["min_steps"])
        target = None
        if recursion.act_continue and recursion.n_sup > 1:
            with torch.no_grad():
                *_, next_halt, next_continue = self.forward(self.model, latents, carry["inputs"], puzzle)
                target = torch.where(last, next_halt, torch.maximum(next_halt, next_continue)).sigmoid()
        loss = self.losses(logits, q_halt, (q_continue, target), carry["labels"], steps, halted) / len(steps)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]

        self.steps_done += 1
        t = torch.tensor(float(self.steps_done), dtype=self.arch.master_dtype)
        chosen, total_steps = self.cfg.optimizer, self.cfg.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(chosen.lr, t, chosen, total_steps).item()
        self.optimizer.step()
        if table is not None and puzzle is not None and puzzle.grad is not None:
            present, of_row = torch.unique(identifiers, return_inverse=True)
            summed = table.new_zeros(len(present), table.shape[1]).index_add_(0, of_row, puzzle.grad)
            lr = learning_rate(chosen.puzzle_emb_lr, t, chosen, total_steps).item()
            table[present] = table[present] * (1 - lr * chosen.puzzle_emb_weight_decay) - lr * summed.sign()
        if self.ema is not None:
            with torch.no_grad():
                for average, weight in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                    average.mul_(self.cfg.ema_rate).add_(weight, alpha=1 - self.cfg.ema_rate)
        self.q_halt = q_halt.detach()
        self.carry = carry | latents | {"steps": steps, "halted": halted}
        return loss.detach()

    @torch.no_grad()
    def evaluation_step(self, carry: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One supervision step without training: the new carry, of which no row has halted."""
        carry = self.reset_carry(carry, batch)
        puzzle = None if self.puzzle_embedding is None else self.puzzle_embedding[carry["puzzle_identifiers"].long()]
        before = {name: carry[name] for name in self.initial}
        latents, logits, q_halt, q_continue = self.forward(self.ema or self.model, before, carry["inputs"], puzzle)
        steps = carry["steps"] + 1
        self.losses(logits, q_halt, (q_continue, None), carry["labels"], steps, torch.ones_like(carry["halted"]))
        return carry | latents | {"steps": steps, "halted": torch.zeros_like(carry["halted"])}

    def losses(
        self, logits: Tensor, q_halt: Tensor, going_on: tuple[Tensor, Tensor | None], labels: Tensor, steps: Tensor, counted: Tensor
    ) -> Tensor:
        """The loss summed over the rows, `going_on` being q_continue and its target; adds the step's metrics to the sums."""
        labelled = labels != IGNORE_LABEL
        right = labelled & (logits.detach().argmax(-1) == labels)
        num_labelled, num_right = labelled.sum(-1), right.sum(-1)
        exact = num_right == num_labelled
        binary = F.binary_cross_entropy_with_logits
        lm_loss = self.cell_losses(logits, labels, self.arch.model.loss, self.arch.loss_dtype).sum()
        q_halt_loss = binary(q_halt, exact.to(q_halt.dtype), reduction="sum")
        q_continue, target = going_on
        q_continue_loss = q_halt.new_zeros(()) if target is None else binary(q_continue, target, reduction="sum")
        counted = counted & (num_labelled > 0)
        self.metrics = {
            "count": counted.sum(),
            "accuracy": torch.where(counted, num_right.to(q_halt.dtype) / num_labelled.clamp_min(1), 0).sum(),
            "exact_accuracy": (counted & exact).sum(),
            "q_halt_accuracy": (counted & ((q_halt.detach() >= 0) == exact)).sum(),
            "steps": torch.where(counted, steps, 0).sum(),
            "lm_loss": lm_loss.detach(),
            "q_halt_loss": q_halt_loss.detach(),
            "q_continue_loss": q_continue_loss.detach(),
        }
        self.sums = {name: self.sums.get(name, 0) + value for name, value in self.metrics.items()}
        return lm_loss + 0.5 * (q_halt_loss + q_continue_loss)
