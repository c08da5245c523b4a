"""A second kind of puzzle, for tests: colour the cells of a 2x3 grid from dark to light. Nothing but its own members knows it."""

from dataclasses import dataclass

import numpy as np

from trm.tasks.base import Drawn, GridView, TaskFacts

BLANK, ROWS, COLUMNS = 1, 2, 3
COLOURS = {2: "#222222", 3: "#888888", 4: "#eeeeee"}


class Mirrored:
    """Its one symmetry: odd variants are mirrored, left to right."""

    words = "mirrored"

    def draw(self, seed, puzzles, variants):
        cells = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
        source = np.where((variants % 2 == 1)[:, None], cells[:, ::-1].ravel(), cells.ravel())
        return Drawn(source, np.tile(np.arange(5, dtype=np.uint8), (len(puzzles), 1)))

    def signature(self, questions, answers):
        grids = np.concatenate([questions, answers], axis=1).astype(np.uint64).reshape(-1, 2 * ROWS, COLUMNS)
        weights = np.arange(1, 2 * ROWS + 1, dtype=np.uint64)[:, None] * np.array([7, 31, 7], np.uint64)
        return (grids * weights * grids).sum(axis=(1, 2))


@dataclass(frozen=True)
class Shades:
    name = "shades"
    keys = ()
    title = "2x3 shades"
    facts = TaskFacts(seq_len=ROWS * COLUMNS, vocab_size=5)
    view = GridView(ROWS, COLUMNS, (" ", "?", "a", "b", "c"), colours=COLOURS)
    hub = None
    has_classes = False
    symmetry = Mirrored()
    token_of_byte = np.array([{ord("?"): 1, ord("a"): 2, ord("b"): 3, ord("c"): 4}.get(byte, 0) for byte in range(256)], np.uint8)

    def generate(self, count, seed):
        numbers = np.random.default_rng(seed).permutation(3 ** (ROWS * COLUMNS))[:count]
        answers = np.stack([numbers // 3**i % 3 for i in range(ROWS * COLUMNS)], axis=1).astype(np.uint8) + 2
        questions = answers.copy()
        questions[:, ::2] = BLANK
        return questions, answers

    def parse(self, text):
        return self.token_of_byte[np.frombuffer(text.encode(), np.uint8)]

    def check_rows(self, questions, answers):
        return ((questions == BLANK) | (questions == answers)).all(axis=1) & (answers > BLANK).all(axis=1)

    def several_solutions(self, questions, answers):
        return (questions == BLANK).any(axis=1) & False

    def violations(self, question, answer):
        return [] if self.check_rows(question[None], answer[None])[0] else ["not the shades that were given"]

    def contradictions(self, question):
        return []

    def conflicts(self, answer):
        return np.zeros(answer.shape, bool)

    def given(self, question):
        return question > BLANK

    def blank(self, answer):
        return answer <= BLANK


def make(data):
    return Shades()


def check(data):
    pass
