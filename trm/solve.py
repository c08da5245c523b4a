"""Solve one puzzle with a trained model: `python -m trm.solve checkpoint=RUN PUZZLE`.

PUZZLE is the grid row by row, with 1-9 (then A, B, ...) for digits and . or 0 for blanks. Quote it. `test:N` takes the N-th
held-out puzzle (from 0) of the run's dataset.
"""

from pathlib import Path

import numpy as np
import torch

from trm.cli import plain_command
from trm.config import HardwareConfig
from trm.data.format import load_dataset
from trm.data.sudoku import Sudoku
from trm.errors import ConfigError
from trm.runtime import start
from trm.saved_run import SavedRun, open_run, split_arguments
from trm.step import METRICS, empty_carry, eval_step


def predict(run: SavedRun, question: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The answer after each of N_sup supervision steps, [N_sup, C] tokens, and the probability of halting there, [N_sup].

    `question` is [C] tokens. Runs eagerly on the CPU: for one puzzle that is faster than compiling.
    """
    runtime = start(HardwareConfig(name="eager", backend="eager"))
    batch = runtime.put_batch(
        {
            "inputs": question[None].astype(np.int32),
            "labels": np.full((1, len(question)), -100, np.int32),
            "puzzle_identifiers": np.zeros(1, np.int32),
        }
    )
    carry = empty_carry(run.arch, run.fixed, 1)
    sums = torch.zeros(len(METRICS), dtype=run.arch.master_dtype)
    answers, halting = [], []
    with torch.no_grad():
        for _ in range(run.cfg.recursion.n_sup):
            carry, _, logits, q_halt = eval_step(run.arch, run.eval_weights, run.fixed, run.puzzle_embedding, carry, batch, sums)
            answers.append(logits[0].argmax(-1).numpy())
            halting.append(torch.sigmoid(q_halt[0]).item())
    return np.stack(answers), np.array(halting)


def main(arguments: list[str]) -> None:
    """The command: print question and answer as grids, and whether the answer is valid."""
    path, overrides, rest = split_arguments(arguments)
    if len(rest) != 1:
        raise ConfigError(f'one puzzle is needed after checkpoint=RUN, in quotes: "53..7...."; got {len(rest)}')
    run = open_run(path, overrides)
    sudoku = Sudoku(run.cfg.data.box_rows, run.cfg.data.box_cols)
    question = _held_out(run, rest[0]) if rest[0].startswith("test:") else sudoku.parse(rest[0])
    answers, halting = predict(run, question)
    print(report(sudoku, question, answers[-1]))
    print(f"halting probability {halting[-1]:.3f} after {len(answers)} supervision steps")


def _held_out(run: SavedRun, name: str) -> np.ndarray:
    """The question [C] that test:N names."""
    inputs = load_dataset(Path(run.cfg.data.path), "test").inputs
    number = name.removeprefix("test:")
    if not number.isdecimal() or int(number) >= len(inputs):
        raise ConfigError(f"{name}: the dataset's held-out puzzles are test:0 to test:{len(inputs) - 1}")
    return np.asarray(inputs[int(number)])


def report(sudoku: Sudoku, question: np.ndarray, answer: np.ndarray) -> str:
    """Question and answer side by side, and a line that says whether the answer solves the question."""
    left, right = sudoku.grid(question).splitlines(), sudoku.grid(answer).splitlines()
    width = max(map(len, left))
    lines = [f"{'question':<{width}}      answer", *(f"{a:<{width}}      {b}" for a, b in zip(left, right, strict=True))]
    problems = sudoku.violations(question, answer)
    verdict = "valid solution" if not problems else f"NOT a solution: {'; '.join(problems)}"
    return "\n".join([*lines, f"{sudoku.text(answer)}: {verdict}"])


if __name__ == "__main__":
    plain_command(main, __doc__)
