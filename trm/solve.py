"""Solve one puzzle with a trained model: `python -m trm.solve checkpoint=RUN PUZZLE [--watch] [--html FILE] [--gif FILE]`.

PUZZLE is the grid row by row, with 1-9 (then A, B, ...) for digits and . or 0 for blanks. Quote it. `test:N` takes the N-th
held-out puzzle (from 0) of the run's dataset, whose solution is known. Sudoku only.

  --watch      show the grid after every supervision step, with wrong, changed and given cells told apart
  --html FILE  write a page with sliders over supervision steps and latent recursions; it needs nothing else
  --gif FILE   write an animation, one picture for each latent recursion
"""

import re
from pathlib import Path

import numpy as np

from trm.cli import options, plain_command
from trm.data.format import load_dataset
from trm.errors import ConfigError, UserError
from trm.run.saved import SavedRun, open_run, split_arguments
from trm.show.animation import animation
from trm.show.page import page
from trm.show.terminal import Watcher
from trm.show.thinking import Frame, Puzzle, think
from trm.tasks.sudoku.rules import Sudoku


def main(arguments: list[str]) -> None:
    """The command: print question and answer as grids, and whether the answer is valid."""
    given = options("trm.solve", arguments, watch={"action": "store_true"}, html={"type": Path}, gif={"type": Path})
    path, overrides, rest = split_arguments(given.rest)
    if len(rest) != 1:
        raise ConfigError(f'one puzzle is needed after checkpoint=RUN, in quotes: "53..7...."; got {len(rest)}')
    run = open_run(path, overrides)
    puzzle = find_puzzle(run, rest[0])
    watcher = Watcher(puzzle, run.cfg.recursion.n_sup) if given.watch else None
    frames: list[Frame] = []
    for step in think(run.arch, run.eval_weights, run.fixed, run.puzzle_embedding, puzzle.question):
        frames += step
        if watcher:
            watcher.show(step[-1])
    last = frames[-1]
    print(report(puzzle.sudoku, puzzle.question, last.answer))
    print(f"halting probability {last.halting:.3f} after {last.step} supervision steps")
    if given.html:
        title = f"{run.cfg.run_name}, step {run.meta.step}: how the model thinks"
        _write("--html", given.html, page(puzzle, frames, title).encode())
    if given.gif:
        _write("--gif", given.gif, animation(puzzle, frames))


def find_puzzle(run: SavedRun, name: str) -> Puzzle:
    """The puzzle that is written out, or that test:N names in the run's dataset. Raises ConfigError or DataError."""
    data = run.cfg.data
    if not name.startswith("test:"):
        boxes = f"data.box_rows={data.box_rows} data.box_cols={data.box_cols}"
        sudoku = _fitting(run, Sudoku(data.box_rows, data.box_cols), boxes)
        question = sudoku.parse(name)
        return Puzzle(sudoku.text(question), sudoku, question, None)
    dataset = load_dataset(Path(data.path), "test")
    sudoku = _fitting(run, dataset.sudoku, f"data.path={data.path}")
    number = name.removeprefix("test:")
    if not re.fullmatch(r"[0-9]{1,18}", number) or int(number) >= dataset.num_rows:
        raise ConfigError(f"{name[:40]}: the dataset's held-out puzzles are test:0 to test:{dataset.num_rows - 1}")
    return Puzzle(name, sudoku, dataset.inputs[int(number)], dataset.labels[int(number)])


def _fitting(run: SavedRun, sudoku: Sudoku | None, where: str) -> Sudoku:
    """The Sudoku that `where` gives, if it is one and the one that the model reads. Raises ConfigError."""
    arch = run.arch
    if sudoku is not None and (sudoku.num_cells, sudoku.vocab_size) == (arch.seq_len, arch.vocab_size):
        return sudoku
    given = f"a {sudoku.side}x{sudoku.side} Sudoku" if sudoku else "no Sudoku of a known box shape"
    raise ConfigError(
        f"{where}: {given}, but the run was trained on puzzles of {arch.seq_len} cells and {arch.vocab_size} tokens: give a run "
        "and puzzles of the same Sudoku (python -m trm.evaluate measures a run on puzzles of any kind)"
    )


def report(sudoku: Sudoku, question: np.ndarray, answer: np.ndarray) -> str:
    """Question and answer side by side, and a line that says whether the answer solves the question."""
    left, right = sudoku.grid(question).splitlines(), sudoku.grid(answer).splitlines()
    width = max(map(len, left))
    lines = [f"{'question':<{width}}      answer", *(f"{a:<{width}}      {b}" for a, b in zip(left, right, strict=True))]
    problems = sudoku.violations(question, answer)
    verdict = "valid solution" if not problems else f"NOT a solution: {'; '.join(problems)}"
    return "\n".join([*lines, f"{sudoku.text(answer)}: {verdict}"])


def _write(option: str, path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written to ({error.strerror}): choose another file") from error
    print(f"written: {path}")


if __name__ == "__main__":
    plain_command(main, __doc__)
