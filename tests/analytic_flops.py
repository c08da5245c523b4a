"""FLOPs by formula, the oracle of trm/core/flops.py: 2 for each weight and position, a pass with gradient as three without."""

from trm.core.initial import swiglu_width


def passes(cfg):
    """Passes of the network in one supervision step (without gradient, with); None for a recursion that is not listed here."""
    T, n = cfg.recursion.T, cfg.recursion.n
    if cfg.recursion.variant in ("trm", "single_z", "multi_scale_z"):
        return (T - 1) * (n + 1), n + 1
    if cfg.recursion.variant == "one_step_gradient":
        return T * (n + 1) - 2, 2
    if cfg.recursion.variant == "single_state":
        return (T - 1) * n, n
    return None


def pass_flops(arch):
    """FLOPs of one pass of the network over one row: 2 for each weight and position that it meets."""
    model, D, L = arch.model, arch.model.hidden_size, arch.num_tokens
    channel = 2 * L * 3 * D * swiglu_width(D, model.expansion)
    tokens = 2 * D * 3 * L * swiglu_width(L, model.expansion)
    attention = 2 * L * 4 * D * D + 2 * 2 * L * L * D  # qkv and out; scores and weighted values
    return model.num_layers * (channel + (tokens if model.mixer == "mlp" else attention))


def analytic_train_flops(cfg, arch):
    """The count of docs/explanation/what_is_computed.md ("about 43 GFLOP" a row): a pass with gradient costs three without."""
    counted = passes(cfg)
    without, with_gradient = counted
    if (copies := arch.latents.num_hypotheses) > 1:  # all of them without gradient, then the winner's last latent recursion
        last = sum(counted) // cfg.recursion.T
        without = copies * sum(counted) + last - with_gradient
    row = pass_flops(arch) * (without + 3 * with_gradient) + (3 if copies == 1 else copies + 3) * _head_flops(arch)
    if cfg.recursion.act_continue and cfg.recursion.n_sup > 1:
        row += pass_flops(arch) * (without + with_gradient) + _head_flops(arch)
    return row * cfg.train.global_batch_size


def analytic_eval_flops(cfg, arch):
    """The same for one evaluation step: every pass without gradient."""
    return (pass_flops(arch) * sum(passes(cfg)) + _head_flops(arch)) * cfg.eval_batch_size


def _head_flops(arch):
    """lm_head on every token and q_head on one."""
    return 2 * arch.model.hidden_size * (arch.num_tokens * arch.vocab_size + 2)
