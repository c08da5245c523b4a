"""The published number (trm/config/paper.py) that belongs to a run's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trm.config.identity import defaults, inference_steps, way_keys
from trm.config.keys import NUMBERS
from trm.config.paper import ABLATED, DATASET, FIELD, ROWS, PaperRow
from trm.config.schema import role

# Keys that do not change what a result means, or that `find` compares in another form: machine, seeds, steps, counts of puzzles.
FREE = (
    *("seed", "data.seed", "data.num_test_puzzles", "data.num_aug", "data.on_the_fly_aug", "evaluate.max_puzzles"),
    *("train.max_steps", "train.max_flops", "train.epochs", "train.eval_every_steps", "hardware.dtype", "hardware.loss_dtype"),
)
KIND = ("data.task", "data.box_rows")  # the kind of puzzle


@dataclass(frozen=True)
class PaperMatch:
    """A row of the paper with the same ablation, and the other settings in which the run differs from the paper."""

    row: PaperRow
    unlike: tuple[str, ...]  # "KEY=VALUE (paper: VALUE)"
    same_kind: bool  # the puzzles have the row's kind and size, so its value may be shown beside the run's

    @property
    def same_measure(self) -> bool:
        """Whether the puzzles, the way of inference and the initial weights are those of the row."""
        apart = ("data.", "puzzles", "test puzzles", "train.init_from", "train.trainable", *way_keys())
        return not any(text.startswith(apart) for text in self.unlike)

    @property
    def comparable(self) -> bool:
        """Whether the run has all settings of the paper, so that the two numbers can be compared."""
        return not self.unlike


def find(
    settings: Mapping[str, Any], total_steps: int | None, test_puzzles: int | None = None, caveats: Sequence[str] = ()
) -> PaperMatch | None:
    """The paper's row for a run's settings (flat, with dotted keys) and its planned length, or None.

    `test_puzzles` is the number that the result was measured on (None = not known); `caveats` are those of the puzzles. Missing
    keys get their defaults. Every key that changes numbers is compared, unless it is in FREE.
    """
    actual = {**defaults(), **settings}
    for row in (*ROWS, *FIELD):
        expected = {"data.name": DATASET, **defaults(), **row.fixed, **row.changes}  # the schema's defaults are the paper's
        if all(actual[key] == expected[key] for key in ABLATED):
            break
    else:
        return None
    same_kind = all(actual[key] == expected[key] for key in KIND)
    attention = actual["model.mixer"] == "attention"
    expected["model.positions"] = "rope" if attention else "none"
    aside = {*FREE, *(() if attention else ("model.num_heads", "model.rope_theta"))}
    aside |= set() if actual["ema.enabled"] else {"ema.rate", "ema.start_step"}
    aside |= {"optimizer.lr_min_ratio"} if actual["optimizer.schedule"] == "constant" else set()
    aside |= {"data.source"} if actual["data.name"] != expected["data.name"] else set()  # goes with the name
    keys = [key for key in expected if key not in aside and (role(key) == NUMBERS or key in way_keys())]
    found = {key: (actual[key], expected[key]) for key in keys}
    found["inference.supervision_steps"] = inference_steps(actual), inference_steps(expected)
    # stored on disk or drawn while loading: both are as many augmented variants of every puzzle
    found["augmented variants"] = actual["data.num_aug"] or actual["data.on_the_fly_aug"], row.augmentations
    found["steps"] = total_steps, row.steps
    if test_puzzles is not None:
        found["test puzzles"] = test_puzzles, row.test_puzzles
    unlike = (f"{key}={here} (paper: {there})" for key, (here, there) in found.items() if here != there)
    return PaperMatch(row, (*unlike, *(f"puzzles: {caveat}" for caveat in caveats)), same_kind)
