"""Mazes as a task: rules, symmetries and generator as the members of `Task`."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trm.errors import ConfigError, DataError
from trm.tasks.augment import ORDER, Dihedral
from trm.tasks.base import Flags, GridView, Hub, Scores, Split, Task, TaskFacts, Tokens
from trm.tasks.maze import rules
from trm.tasks.maze.rules import CHARACTERS, FREE, GOAL, PAD, PATH, START, WALL
from trm.tasks.maze.settings import Settings

# The commit is not known here, so the sha256 of the files is checked.
CONTENT = {
    "train.csv": "8a525717a23afdf85f512525ed8516e14999786806738ae28af53ec9e7abd89f",
    "test.csv": "3e647bcc970e8c6ad59c2b0a3a487628da5c8ce840d8995cb8e5b5543c22c4ee",
}
HUB = Hub("sapientinc/maze-30x30-hard-1k", "main", 1000, instead="maze_unique", sha256=CONTENT)
HUB_SIDE = 30
SMALLEST_SIDE = 7  # of generated mazes; smaller sides have too few different mazes
COLOURS = {WALL: "#3a424b", START: "#bfe3cf", GOAL: "#f3dfae", PATH: "#d6e6f5"}
_NAMES = {PAD: "nothing", WALL: "a wall", FREE: "free", START: "the start", GOAL: "the goal", PATH: "path"}


@dataclass(frozen=True)
class MazeTask(Task):
    """Mazes on a square canvas; trm/tasks/base.py documents the members."""

    side: int
    path_min: int
    path_max: int | None

    settings = Settings
    score_names = ("optimal", "one_path")
    difficulty_words = "path length, steps"

    @classmethod
    def make(cls, data: Settings) -> Self:
        return cls(data.canvas, data.path_min, data.path_max)

    @classmethod
    def check(cls, data: Settings) -> None:
        """Raise ConfigError for mazes that cannot be generated, and for more variants than a square has symmetries."""
        if data.source == "generated" and data.canvas < SMALLEST_SIDE:
            raise ConfigError(f"data.canvas={data.canvas}: mazes are generated from side {SMALLEST_SIDE} on: raise it")
        if data.path_max is not None and data.path_max < data.path_min:
            raise ConfigError(f"data.path_min={data.path_min} data.path_max={data.path_max} leave no length: raise data.path_max")
        for key, value in (("num_aug", data.num_aug), ("on_the_fly_aug", data.on_the_fly_aug)):
            if value >= ORDER:
                raise ConfigError(f"data.{key}={value}: a maze has {ORDER - 1} symmetric copies: set it to 0 to {ORDER - 1}")

    @property
    def title(self) -> str:
        return f"{self.side}x{self.side} maze"

    @property
    def facts(self) -> TaskFacts:
        return TaskFacts(self.side**2, len(CHARACTERS) + 1, pad=PAD, ignored_label=PAD)

    @cached_property
    def view(self) -> GridView:
        return GridView(self.side, self.side, ("?", *CHARACTERS), colours=COLOURS, line=(START, GOAL, PATH), gap="")

    @cached_property
    def symmetry(self) -> Dihedral:
        return Dihedral(self.side, len(CHARACTERS) + 1)

    @property
    def hub(self) -> Hub | None:
        return HUB if self.side == HUB_SIDE else None

    def generate(self, count: int, seed: int) -> Split:
        """Perfect mazes, which have exactly one path."""
        return rules.generate(self.side, (self.path_min, self.path_max), count, seed)

    def parse(self, text: str) -> NDArray[np.uint8]:
        """Tokens [L] of a maze in one line, or in one line for each row; free cells at the end of a row may be missing."""
        tokens = super().parse(text)
        for token, word in ((START, "starts"), (GOAL, "goals")):
            found = int((tokens == token).sum())
            if found != 1:
                raise DataError(f"{found} {word} ({CHARACTERS[token - 1]}), but a maze has one")
        return tokens

    def check_rows(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> Flags:
        """Which rows [N] are sound: a maze with one start and goal, and a shortest path through it."""
        sound = rules.with_one_start_and_goal(questions)
        steps, _ = rules.shortest(questions[sound])
        sound[sound] = (steps > 0) & rules.optimal(questions[sound], answers[sound], steps)
        return sound

    def solved(self, questions: NDArray[np.uint8], *, quick: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        return rules.solved(questions)

    def remarks(self, questions: NDArray[np.uint8], answers: NDArray[np.uint8]) -> list[str]:
        steps, alone = self.difficulty(questions, answers), int((rules.solved(questions)[1] == 1).sum())
        lengths = f"paths of {steps.min()} to {steps.max()} steps, median {np.median(steps):.0f}"
        return [f"{alone:,} of {len(steps):,} mazes have exactly one shortest path; {lengths}"]

    def violations(self, question: Tokens, answer: Tokens) -> list[str]:
        """Why an answer is not a shortest path, in words."""
        if not rules.with_one_start_and_goal(question[None])[0]:
            return ["the maze itself needs one start, one goal, and otherwise only walls and free cells"]
        (steps,), _ = rules.shortest(question[None])
        if steps < 0:
            return ["no path leads from the start to the goal of this maze"]
        found = []
        for token in (WALL, START, GOAL, FREE):
            kept = (token, PATH) if token == FREE else (token,)
            wrong = np.flatnonzero((question == token) & ~np.isin(answer, kept))
            if len(wrong):
                what = "1 cell" if len(wrong) == 1 else f"{len(wrong)} cells, the first"
                word = _NAMES.get(int(answer[wrong[0]]), "nothing")
                found.append(f"{_NAMES[token]} in the maze, but not in the answer: {what} in {self._cell(wrong[0])} ({word} there)")
        ways, length = rules.ways(answer[None]).ravel(), int((answer == PATH).sum()) + 1
        pieces = int(rules.pieces(answer[None]).max())
        if pieces > 1:
            found.append(f"the path has gaps: it is in {pieces} pieces")
        for cells, one, several in (
            ((ways < 0) & (answer == PATH), "has a dead end", "has {} dead ends, the first"),
            (ways > 0, "branches or touches itself", "branches or touches itself in {} cells, the first"),
        ):
            if count := int(cells.sum()):
                words = one if count == 1 else several.format(count)
                found.append(f"the path {words} in {self._cell(int(cells.argmax()))}")
        if not found and length > steps:
            found.append(f"the path has {length} steps, {length - steps} more than the shortest")
        return found

    def _cell(self, cell: int) -> str:
        return f"row {cell // self.side + 1} column {cell % self.side + 1}"

    def verdict(self, question: Tokens, answer: Tokens) -> str:
        problems = self.violations(question, answer)
        if not problems:
            return f"valid solution, optimal: a shortest path of {int((answer == PATH).sum()) + 1} steps"
        if rules.one_path(question[None], answer[None])[0]:
            return f"valid path, but NOT optimal: {'; '.join(problems)}"
        return f"NOT a solution: {'; '.join(problems)}"

    def given(self, question: Tokens) -> Flags:
        given: Flags = question != FREE
        return given

    def conflicts(self, answer: Tokens) -> Flags:
        """Path cells that are dead ends or in a piece without start and goal, and cells where the path branches."""
        pieces, ways = rules.pieces(answer[None]).ravel(), rules.ways(answer[None]).ravel()
        apart = (pieces > 0) & ~np.isin(pieces, pieces[(answer == START) | (answer == GOAL)])
        conflicts: Flags = (ways < 0) & (answer == PATH) | apart | (ways > 0)
        return conflicts

    def scores(self, questions: NDArray[np.integer], answers: NDArray[np.integer], predictions: NDArray[np.integer]) -> Scores:
        """`optimal`: a path as short as the known one; `one_path`: exactly one path, of any length."""
        return {
            "optimal": rules.optimal(questions, predictions, self.difficulty(questions, answers)),
            "one_path": rules.one_path(questions, predictions),
        }

    def difficulty(self, questions: NDArray[np.integer], answers: NDArray[np.integer]) -> NDArray[np.integer]:
        steps: NDArray[np.integer] = (answers == PATH).sum(axis=1) + 1
        return steps
