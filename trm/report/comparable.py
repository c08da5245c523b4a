"""What may be compared: the one rule for means over seeds, differences, records, ways of inference, tables and pictures.

Two accuracies may be compared if they have the same test puzzles, the same number of them, the same way of inference, the same
training puzzles and the same training step. Some settings exist to be compared: how many puzzles are trained on, and how long.
Where these differ, what they decide may differ too, and so may the steps of runs with one budget in FLOPs. Published values have
the same rule over all settings: trm/config/matching.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trm.config import NUMBERS, RESULTS, all_keys, inference_steps, role, way_keys
from trm.report.runs import DIGESTS, Run

Facts = Mapping[str, Any]

TRAIN, TEST = DIGESTS
COUNT, STEP, LAST, STEPS = "test puzzles evaluated", "training step", "is the run's last step", "supervision steps"
CANDIDATES, INTERVAL = "candidates", "train.eval_every_steps"
DECIDE_TRAIN = ("data.num_puzzles", "data.num_aug", "data.on_the_fly_aug")
DECIDE_STEP = ("train.max_steps", "train.max_flops", "train.epochs", "train.global_batch_size", "data.num_puzzles")
# instead of the digest, for runs that do not say which test puzzles they read
NAMED = tuple(key for key in all_keys() if key.startswith("data.") and role(key) in (NUMBERS, RESULTS) and key not in DECIDE_TRAIN)


def facts(run: Run) -> Facts:
    """How the run's final accuracy was measured."""
    said = {key: run.settings.get(key) for key in (*way_keys(), *NAMED, *DECIDE_TRAIN, *DECIDE_STEP, *DIGESTS, INTERVAL)}
    measured = {COUNT: run.evaluated_puzzles, STEP: run.evaluated_step, LAST: True}
    return {**said, **measured, STEPS: inference_steps(run.settings), CANDIDATES: None}  # which the settings say


def unlike(one: Facts, other: Facts, *, ways: bool = False, race: bool = False) -> str:
    """Why the first may not be compared with the other, in words; empty where it may.

    `ways`: the comparison is between ways of inference. `race`: it is about the time to an accuracy, which only evaluations show.
    """

    def differ(*keys: str) -> bool:
        return any(one[key] != other[key] for key in keys)

    keys = [*([TEST] if one[TEST] or other[TEST] else NAMED), COUNT]
    if not ways:
        keys += [CANDIDATES, *(key for key in way_keys() if key != "inference.supervision_steps")]
        keys += [STEPS] if differ("inference.supervision_steps") else []  # otherwise each has as many as in its training
    keys += [INTERVAL] if race else []
    keys += [] if differ(*DECIDE_TRAIN) else [TRAIN]
    lengths, budget = differ(*DECIDE_STEP), one["train.max_flops"]  # a budget buys each its own number of steps
    keys += [LAST] if lengths or budget else []
    keys += [] if lengths or (budget and one[LAST]) else [STEP]
    return "; ".join(f"{key} {_word(one[key])}, not {_word(other[key])}" for key in keys if differ(key))


def _word(value: Any) -> str:
    return "unknown" if value is None else str(value)


def misfits(measured: Sequence[Facts], *, ways: bool = False, race: bool = False) -> list[str]:
    """For each the reason why it may not be compared with the one that fits most others; empty where it may."""
    distinct = list({tuple(map(str, each.values())): each for each in measured}.values())
    if not distinct:
        return []
    usual = max(distinct, key=lambda one: sum(not unlike(other, one, ways=ways, race=race) for other in measured))
    return [unlike(each, usual, ways=ways, race=race) for each in measured]
