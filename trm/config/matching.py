"""Which published number (trm/config/paper.py) a run's settings correspond to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trm.config.identity import defaults, inference_steps, way_keys
from trm.config.keys import NUMBERS
from trm.config.paper import ABLATED, DATASET, FIELD, ROWS, PaperRow
from trm.config.schema import role

# Keys that leave a result what it is, or that `_unlike` has in another form: the machine, seeds, steps, counts of puzzles.
FREE = (
    *("seed", "data.seed", "data.num_test_puzzles", "data.num_aug", "data.on_the_fly_aug", "evaluate.max_puzzles"),
    *("train.max_steps", "train.max_flops", "train.epochs", "train.eval_every_steps", "hardware.dtype", "hardware.loss_dtype"),
)


KIND = ("data.task", "data.box_rows")  # which puzzles they are


@dataclass(frozen=True)
class PaperMatch:
    """A row of the paper with the same ablation, and the other settings in which the run is unlike the paper."""

    row: PaperRow
    unlike: tuple[str, ...]  # "KEY=VALUE (paper: VALUE)"
    same_kind: bool  # whether the puzzles are of the row's kind and size, so that its value may stand beside the run's

    @property
    def same_measure(self) -> bool:
        """Whether at least the puzzles, the way of inference and what was trained before are the row's."""
        apart = ("data.", "puzzles", "test puzzles", "train.init_from", "train.trainable", *way_keys())
        return not any(text.startswith(apart) for text in self.unlike)

    @property
    def comparable(self) -> bool:
        """True where the run differs from the paper in nothing, so that a difference of the two numbers means something."""
        return not self.unlike


def expected_of(row: PaperRow) -> dict[str, Any]:
    """What a run has to agree in: the settings of the row's own over the paper's, which are the schema's defaults."""
    return {"data.name": DATASET, **defaults(), **row.fixed, **row.changes}


def find(
    settings: Mapping[str, Any], total_steps: int | None, test_puzzles: int | None = None, caveats: Sequence[str] = ()
) -> PaperMatch | None:
    """The paper's row for a run's settings (flat, with dotted keys) and its planned length; None where it has none.

    `test_puzzles` are those that its result was measured on, None where that is not known; `caveats` are what changes how an
    accuracy on its puzzles may be read. Keys that the run was made without have their defaults.
    """
    actual = {**defaults(), **settings}
    for row in (*ROWS, *FIELD):
        expected = expected_of(row)
        if all(actual[key] == expected[key] for key in ABLATED):
            same_kind = all(actual[key] == expected[key] for key in KIND)
            return PaperMatch(row, _unlike(row, actual, total_steps, test_puzzles, caveats), same_kind)
    return None


def _unlike(
    row: PaperRow, actual: dict[str, Any], total_steps: int | None, test_puzzles: int | None, caveats: Sequence[str]
) -> tuple[str, ...]:
    """Every key that changes a number and is not FREE, so that a key which comes later counts too."""
    expected, attention = expected_of(row), actual["model.mixer"] == "attention"
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
    return (*unlike, *(f"puzzles: {caveat}" for caveat in caveats))
