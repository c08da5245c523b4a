"""The settings of evaluations: which puzzles, and what is done with the trained model."""

from dataclasses import dataclass

from trm.config.keys import EXACT, NOTHING, SAMPLE_PUZZLES, key


@dataclass
class EvaluateConfig:
    """Evaluation during and after training."""

    batch_size: int | None = key(
        None,
        "rows of one evaluation batch over all devices, fewer if the puzzles fill at most half; null = train.global_batch_size",
        low=1,
        changes=NOTHING,
    )
    max_puzzles: int | None = key(
        None, f"test puzzles of an evaluation; null = {SAMPLE_PUZZLES:,} during training, and all in the last evaluation", low=1
    )
    selection_puzzles: int | None = key(
        None,
        "number of selection puzzles, which choose the best checkpoint and score a search; null = as many as test puzzles, at most "
        "500, if the data is generated, otherwise none; 0 = none: the test puzzles choose, and the report says so",
        low=0,
    )
    by_difficulty: bool = key(False, "trm.evaluate: scores for ranges of difficulty")
    max_variants: int | None = key(32, "ARC: variants that vote on a puzzle; null = all, the default of trm.evaluate", low=1)
    blank_identifiers: bool = key(False, "trm.evaluate: answer without the puzzles' identifiers, to see what they contribute (ARC)")
    votes: str = key(
        "checkpoint",
        "ARC: votes of the evaluated checkpoint alone, or of all evaluations of the run up to it, as in the released code",
        choices=("checkpoint", "run"),
    )
    best_by: str = key(
        EXACT, "score that chooses the best checkpoint: exact, or one of the task (optimal, one_path)", changes=NOTHING
    )


@dataclass
class InferenceConfig:
    """How a puzzle is answered: copies x restarts x rollouts candidates of D supervision steps, and their selection."""

    name: str = key("standard", "name of the way of inference")
    copies: int = key(1, "symmetric copies of a puzzle; the first is the puzzle itself", low=1, high=1024)
    restarts: int = key(1, "starts of the latents: that of training, and others drawn at random (EqR)", low=1, high=2048)
    rollouts: int = key(1, "rollouts of each start; inference.noise makes them differ", low=1, high=2048)
    noise: float = key(0.0, "std of the normal noise on the answer latent before every supervision step (PTRM)", low=0, high=100)
    supervision_steps: int | None = key(None, "supervision steps D of a candidate; null = recursion.n_sup", low=1, high=16384)
    early_exit: bool = key(
        False,
        "a candidate that halts keeps its answer, and its row takes the next candidate; always so with halt_first, never with "
        "residual and resample",
    )
    selection: str = key(
        "last",
        "which candidate answers: last = the only one; vote = the grid that most candidates gave, in a tie the highest halting "
        "logit; mode = the same, in a tie the first; best_q = the highest halting logit; residual = the one whose logits change "
        "least (EqR); halt_first = the first that halts; resample = best_q of candidates that are drawn again after every step by "
        "their halting probability (guided exploration)",
        choices=("last", "vote", "mode", "best_q", "residual", "halt_first", "resample"),
    )
    window: int = key(3, "residual: number of last supervision steps whose change counts", low=1, high=1024)
    beta: float = key(0.25, "resample: power of the halting probability by which candidates are drawn", low=0, high=1000)
    seed: int = key(0, "seed of starts, noise and resampling", low=0, high=2**31 - 1)
    ladder: list[str] = key([], "trm.evaluate: options of inference that are run one after the other and compared", changes=NOTHING)

    @property
    def particles(self) -> int:
        """Candidates of each copy."""
        return self.restarts * self.rollouts

    @property
    def candidates(self) -> int:
        """Candidates of a puzzle."""
        return self.copies * self.particles

    @property
    def is_random(self) -> bool:
        """Whether random numbers are drawn for it."""
        return self.restarts > 1 or self.noise > 0 or self.selection == "resample"

    @property
    def exits_early(self) -> bool:
        """Whether a row that halts takes the next candidate."""
        return self.early_exit or self.selection == "halt_first"

    @property
    def in_step(self) -> bool:
        """Whether the selection compares candidates that have done equally many supervision steps."""
        return self.selection in ("residual", "resample")

    @property
    def rows_together(self) -> int:
        """Rows that have to be in one batch, since what one does depends on the others."""
        return {"halt_first": self.candidates, "resample": self.particles}.get(self.selection, 1)
