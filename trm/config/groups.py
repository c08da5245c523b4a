"""The config groups of conf/ and their options."""

from pathlib import Path

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"  # in a checkout a link to conf/

# One line on each config group, in the order of conf/config.yaml; `--help` prints it with the group's options.
GROUPS = {
    "model": "the network: token mixer, width, depth, prefix",
    "recursion": "T latent recursions of n updates, N_sup supervision steps, halting, variants",
    "ema": "moving average of the weights, used for evaluation",
    "optimizer": "update rule, learning rate, warm-up, decay",
    "data": "the puzzles, their number and their augmentation",
    "inference": "how evaluations answer a puzzle: its candidates, and the selection among them",
    "hardware": "devices, number formats, backend",
    "tracking": "W&B and TensorBoard, in addition to metrics.jsonl",
    "recipe": "rates, batch and length, and ratios of them; recipe=tiny is for a CPU",
    "experiment": "a named experiment: overrides on top of the groups above",
    "sweep": "a named grid of experiments: +sweep=NAME runs them all",
}


def describe_groups() -> str:
    """The config groups with one line and the options of each, for `--help`."""
    return "\n".join(f"  {group:<11} {about}\n{' ' * 14}{' | '.join(group_options(group))}" for group, about in GROUPS.items())


def group_options(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(p.stem for p in (CONF_DIR / group).glob("[!_]*.yaml"))
