"""The variants of the field as a trainer that takes one row at a time, written from the formulas: the oracle of test_variants.py.

A row is a dict: its puzzle, `y` [L, D] and for each copy its other latents by name. Slow and plain on purpose; it shares nothing
with trm/core but the names of weights, their first values and the random numbers by counter. No puzzle embedding.

Shape legend: L tokens (registers and cells), D hidden size, K head size, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F

from trm.ground.rng import RECURSION_NOISE, STARTS, normal

IGNORED = -100


def norm(x, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def turned(x, angles):
    """x [L, K'] with the pairs (i, i + K'/2) turned by angles [L, K'/2]."""
    half = x.shape[-1] // 2
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], dim=-1)


class RowTrainer:
    def __init__(self, cfg, state, buffers, seed):
        self.cfg, self.arch, self.buffers, self.seed = cfg, cfg.arch, buffers, seed
        self.weights = {name: w.clone().requires_grad_() for name, w in state.weights.items()}
        self.ema = {name: w.clone() for name, w in state.weights.items()}
        self.m = {name: torch.zeros_like(w) for name, w in self.ema.items()}
        self.v = {name: torch.zeros_like(w) for name, w in self.ema.items()}
        self.rows = [{"halted": True} for _ in state.carry.halted]
        self.t = 0  # updates done
        self.shape = (cfg.arch.num_tokens, cfg.arch.model.hidden_size)

    # ------------------------------------------------------------------------------------------------------------- network

    def glu(self, x, name, conv=None):
        model = self.arch.model
        g, v = (x @ self.weights[f"{name}.gate_up"].T).chunk(2, -1)
        inside = norm(g * v, model.rms_norm_eps) if model.mlp == "gated_norm_swiglu" else g * v
        inner = torch.sigmoid(g) * inside
        if conv is not None:
            w, b = self.weights[f"{name}.conv.weight"], self.weights[f"{name}.conv.bias"]
            if w.ndim == 3:
                before = [torch.zeros_like(inner[0]), *inner[:-1]]
                sums = torch.stack([before[i] * w[:, 0, 0] + inner[i] * w[:, 0, 1] + b for i in range(len(inner))])
            else:
                sums = torch.stack([b + sum(inner[j] * w[:, 0, *tap] for j, tap in self.seen_from(i)) for i in range(len(inner))])
            inner = sums * torch.sigmoid(sums)
        return inner @ self.weights[f"{name}.down"].T

    def seen_from(self, i):
        """The tokens that a 3x3 convolution sees from token i, each with its place in the kernel."""
        prefix, side = self.arch.model.prefix_len, math.isqrt(self.arch.seq_len)
        if i < prefix:
            return [(i, (1, 1))]
        row, column = divmod(i - prefix, side)
        near = [(row + r, column + c, r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
        return [(prefix + y * side + x, (r + 1, c + 1)) for y, x, r, c in near if 0 <= y < side and 0 <= x < side]

    def attention(self, h, block):
        model, (L, D) = self.arch.model, self.shape
        K = D // model.num_heads
        outs, base, side = [], model.rope_theta, math.isqrt(self.arch.seq_len)
        parts = (part.chunk(model.num_heads, -1) for part in (h @ self.weights[f"{block}.qkv"].T).chunk(3, -1))
        for q, k, v in zip(*parts, strict=True):
            if model.positions == "rope":
                angles = torch.arange(L)[:, None] * base ** (-2 * torch.arange(K // 2).double() / K)
                q, k = turned(q, angles), turned(k, angles)
            if model.positions == "rope2d":
                cells = (torch.arange(L) - model.prefix_len).clamp(min=0)[:, None]
                frequencies = base ** (-2 * torch.arange(K // 4).double() / (K // 2))
                row, column = cells // side * frequencies, cells % side * frequencies
                q, k = (torch.cat([turned(x[:, : K // 2], row), turned(x[:, K // 2 :], column)], -1) for x in (q, k))
            outs.append(torch.softmax(q @ k.T / math.sqrt(K), -1) @ v)
        return torch.cat(outs, -1) @ self.weights[f"{block}.out"].T

    def net(self, h):
        model, eps = self.arch.model, self.arch.model.rms_norm_eps
        for i in range(model.num_layers):
            if model.mixer == "mlp":
                h = norm(h.T + self.glu(h.T, f"net.{i}.token_mlp"), eps).T
            else:
                h = norm(h + self.attention(h, f"net.{i}.attention"), eps)
            h = norm(h + self.glu(h, f"net.{i}.mlp", conv=True if "conv" in model.mlp else None), eps)
        return h

    def updated(self, u, injection, number):
        """u <- (1-l) u + l f(u + injection) + b e, in a row's pass of that number; `injection` is what is added to u."""
        recursion = self.arch.recursion
        new = (1 - recursion.damping) * u + recursion.damping * self.net(u + injection)
        if recursion.noise:
            e = normal(
                self.seed, torch.tensor([self.noise_row]), self.shape, stream=RECURSION_NOISE, step=self.t, application=number,
                dtype=torch.float64,
            )  # fmt: skip
            new = new + recursion.noise * e[0]
        return new

    def recursions(self, y, z, x):
        """One copy's supervision step: the new y and z (a dict)."""
        recursion, number, training = self.arch.recursion, 0, torch.is_grad_enabled()
        names = [name for name in self.arch.latent_names if name != "z_H"]
        z = dict(z)
        for t in range(recursion.T):
            with torch.set_grad_enabled(training and t == recursion.T - 1):
                for i in range(recursion.n):
                    if recursion.variant == "single_state":
                        y = self.updated(y, x, number)
                    else:
                        own = names[i] if len(names) > 1 else names[0]
                        others = sum((z[name] for name in names if name != own), torch.zeros(self.shape, dtype=torch.float64))
                        last = recursion.variant != "one_step_gradient" or i == recursion.n - 1
                        with torch.set_grad_enabled(torch.is_grad_enabled() and last):
                            z[own] = self.updated(z[own], others + y + x, number)
                    number += 1
                if recursion.variant != "single_state":
                    y = self.updated(y, sum(z.values()), number)
                    number += 1
        return y, z

    def cross_entropy(self, logits, labels):
        s, total, count = self.arch.objective.label_smoothing, 0.0, 0
        for cell, label in zip(logits, labels.tolist(), strict=True):
            if label == IGNORED:
                continue
            weight = torch.where(cell < 0, 1 / (1 - cell), cell + 1) if self.arch.model.loss == "stablemax" else cell.exp()
            log_p = (weight / weight.sum()).log()
            total, count = total - (1 - s) * log_p[label] - s * log_p.sum() / len(log_p), count + 1
        return total / max(count, 1)

    # ------------------------------------------------------------------------------------------------------------ training

    def start(self, number):
        """The latents of a row that takes a new puzzle: y, and a dict for each copy."""
        names, copies, z = self.arch.latent_names, self.arch.latents.num_hypotheses, []
        if self.arch.latents.init == "random":

            def drawn(i, shape):
                e = normal(
                    self.seed, torch.tensor([number]), shape, stream=STARTS, step=self.t, application=i, truncated=True,
                    dtype=torch.float64,
                )  # fmt: skip
                return e[0] / 0.8796256610342398

            y = drawn(0, self.shape)
            all_copies = {name: drawn(i, (copies, *self.shape)) for i, name in enumerate(names) if i}
            return y, [{name: value[k] for name, value in all_copies.items()} for k in range(copies)]
        for k in range(copies):
            z.append({name: self.buffers[f"init.{name}" + (f".{k}" if k else "")].expand(self.shape) for name in names[1:]})
        return self.buffers["init.z_H"].expand(self.shape), z

    def step(self, batch):
        """One training step: the loss, and what `rows` hold after it."""
        arch, recursion, copies = self.arch, self.arch.recursion, self.arch.latents.num_hypotheses
        loss, D = 0.0, self.shape[1]
        for number, row in enumerate(self.rows):
            if row["halted"]:
                y, z = self.start(number)
                row |= {"inputs": batch["inputs"][number], "labels": batch["labels"][number], "y": y, "z": z, "steps": 0}
            x = self.weights["embed_tokens"][row["inputs"].long()]
            if arch.model.registers:
                x = torch.cat([self.weights["embed_registers"], x])
            found = []
            for k in range(copies):
                self.noise_row = number * copies + k
                y, z = self.recursions(row["y"], row["z"][k], math.sqrt(D) * x)
                logits = (y @ self.weights["lm_head"].T)[arch.model.prefix_len :]
                q = (self.weights["q_head.weight"] @ y[0] + self.weights["q_head.bias"])[0]
                found.append((self.cross_entropy(logits, row["labels"]), y, z, logits, q))
            row["winner"] = min(range(copies), key=lambda k: found[k][0].item())
            ce, y, _, logits, q = found[row["winner"]]
            labelled = row["labels"] != IGNORED
            right = bool((logits.argmax(-1) == row["labels"])[labelled].all())
            loss = loss + ce + arch.objective.halt_weight * F.softplus(-q if right else q)
            row |= {"y": y.detach(), "z": [{name: v.detach() for name, v in each[2].items()} for each in found]}
            row |= {"steps": row["steps"] + 1, "q": q.item()}
            wants = row["steps"] >= recursion.n_sup or (recursion.n_sup > 1 and q.item() > 0)
            row["halted"] = wants and row["steps"] >= int(batch["min_steps"][number])
        loss = loss / len(self.rows)
        for w in self.weights.values():
            w.grad = None
        loss.backward()
        if self.cfg.optimizer.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.weights.values(), self.cfg.optimizer.clip_grad_norm)
        self.t += 1
        with torch.no_grad():
            self.update()
        return loss.item()

    def rate(self, base):
        """Linear warm-up, then constant or a cosine down to lr_min_ratio."""
        chosen, last = self.cfg.optimizer, self.cfg.total_steps
        if self.t < chosen.warmup_steps:
            return base * self.t / chosen.warmup_steps
        if chosen.schedule == "constant":
            return base
        share = (self.t - chosen.warmup_steps) / (last - chosen.warmup_steps)
        return base * (chosen.lr_min_ratio + (1 - chosen.lr_min_ratio) * (1 + math.cos(math.pi * share)) / 2)

    def update(self):
        chosen = self.cfg.optimizer
        for name, w in self.weights.items():
            g = torch.zeros_like(w) if w.grad is None else w.grad
            if chosen.name == "muon" and name.startswith("net.") and ".conv." not in name:
                lr = self.rate(chosen.matrix_lr or chosen.lr)
                decay = chosen.weight_decay if chosen.matrix_weight_decay is None else chosen.matrix_weight_decay
                self.m[name] = chosen.momentum * self.m[name] + (1 - chosen.momentum) * g
                nesterov = chosen.momentum * self.m[name] + (1 - chosen.momentum) * g
                parts = nesterov.chunk({"gate_up": 2, "qkv": 3}.get(name.rpartition(".")[2], 1))
                w.mul_(1 - lr * decay).sub_(lr * torch.cat([self.muon(part) for part in parts]))
                continue
            lr = self.rate(chosen.lr)
            self.m[name] = chosen.beta1 * self.m[name] + (1 - chosen.beta1) * g
            self.v[name] = chosen.beta2 * self.v[name] + (1 - chosen.beta2) * g**2
            m, root = self.m[name] / (1 - chosen.beta1**self.t), (self.v[name] / (1 - chosen.beta2**self.t)).sqrt()
            w.mul_(1 - lr * chosen.weight_decay)
            if "adamw" in (chosen.name, chosen.name == "muon" and chosen.others):
                w.sub_(lr * m / (root + chosen.eps))
            else:
                w.sub_(lr / (1 - chosen.beta1**self.t) * torch.atan2(self.m[name], root))
        for name, w in self.weights.items():
            if self.t <= self.cfg.ema_start:
                self.ema[name] = w.detach().clone()
            else:
                self.ema[name] = self.cfg.ema_rate * self.ema[name] + (1 - self.cfg.ema_rate) * w.detach()

    def muon(self, matrix):
        """The momentum made orthogonal by five quintic Newton-Schulz steps, and scaled."""
        rows, columns = matrix.shape
        x = matrix.T if rows > columns else matrix
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        x = x.T if rows > columns else x
        aspect = self.cfg.optimizer.matrix_scale == "aspect"
        return x * (math.sqrt(max(1, rows / columns)) if aspect else 0.2 * math.sqrt(max(rows, columns)))
