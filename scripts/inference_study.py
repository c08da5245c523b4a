"""Ways of inference measured on trained models: `python scripts/inference_study.py RUN ... [KEY=VALUE ...] [--out FOLDER]`.

RUN are runs of one model with different seeds; KEY=VALUE are settings of trm.evaluate (evaluate.max_puzzles=512, hardware=...).
For each run the script makes passes that serve many ways at once: one of 256 supervision steps, one of 32 symmetric copies, one of
100 rollouts of 16 steps for each noise, one of 32 rollouts of 64 steps, one of 32 restarts. The choice among the first K candidates
after D steps is made afterwards, since a candidate's numbers depend on neither. A finished pass is kept in FOLDER/passes, so the
same command resumes. It writes FOLDER.md, a table with paired intervals, and FOLDER/frontier.png, .csv and .json.

Intervals and p are over seeds and puzzles: all seeds have the same puzzles, and both count as drawn (random effects, crossed;
`interval` below). "sign p" compares these models, whatever other seeds would do: it is the sign test of the puzzles that more seeds
win than lose or lose than win, each counted once; for one seed it is McNemar's. No p is corrected for the number of rows. A way
gets that share of the passes, FLOPs and seconds of its pass that its supervision steps are. Seconds do not include compiling.
"""

import argparse
import shlex
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from trm.config import IGNORE_LABEL, InferenceConfig
from trm.core.flops import count_row_flops, passes
from trm.core.metrics import Predictions
from trm.data.loader import Batch
from trm.inference.compute import pareto
from trm.inference.evaluator import make_evaluator
from trm.inference.selection import select
from trm.run.experiment import on_devices, started
from trm.run.saved import open_run
from trm.show.curves import cells, write_table

LONG_NOISE = 0.3  # of the rollouts of the long pass
ROUNDING = 1e-9  # below which a spread of shares is none


@dataclass(frozen=True)
class Pass:
    """One pass of many candidates."""

    name: str
    settings: tuple[str, ...]  # overrides
    asked: tuple[tuple[str, int, int], ...]  # (selection, first K candidates, D supervision steps)


def study(*, quick: bool) -> list[Pass]:
    """The passes of the study; `quick` has fewer and smaller ones, to try it out."""
    steps: tuple[int, ...] = (4, 8) if quick else (16, 64, 256)
    votes: tuple[int, ...] = (2, 4) if quick else (2, 8, 32)
    rollouts: tuple[int, ...] = (2, 4) if quick else (8, 32, 100)
    restarts: tuple[int, ...] = (2, 4) if quick else (8, 32)
    noises = (0.3,) if quick else (0.1, 0.3, 1.0)
    selections = ("best_q", "mode", "vote", "residual", "halt_first")
    one = ("inference.selection=vote", f"inference.copies={max(votes)}", f"inference.supervision_steps={steps[0]}")
    traced = ("inference.selection=residual",)  # also keeps the residuals
    short, long = f"inference.supervision_steps={steps[0]}", f"inference.supervision_steps={steps[1]}"
    found = [
        Pass("steps", (f"inference.supervision_steps={steps[-1]}",), tuple(product(("last",), (1,), steps))),
        Pass("copies", one, tuple(product(("vote", "mode", "best_q", "halt_first"), votes, steps[:1]))),
    ]
    for noise in noises:
        settings = (*traced, short, f"inference.rollouts={max(rollouts)}", f"inference.noise={noise}")
        found.append(Pass(f"noise{noise:g}", settings, tuple(product(selections, rollouts, steps[:1]))))
    rolled = (*traced, long, f"inference.rollouts={rollouts[1]}", f"inference.noise={LONG_NOISE}")
    found.append(Pass(f"noise{LONG_NOISE:g}_long", rolled, tuple(product(selections, rollouts[:2], steps[1:2]))))
    restarted = (*traced, short, f"inference.restarts={max(restarts)}")
    found.append(Pass("restarts", restarted, tuple(product(selections, restarts, steps[:1]))))
    return found


Found = dict[str, NDArray[Any]]  # of ways "SELECTION/K/D/right|oracle|row_steps" over the puzzles N; and numbers of the pass


def measured(path: Path, wanted: Pass, others: list[str], keep: Path) -> Found:
    """The results of a pass for each of its ways; a pass that was kept is read. Raises the errors of trm.run.saved.open_run."""
    if keep.exists():
        with np.load(keep) as file:
            return dict(file)
    run = open_run(path, [*wanted.settings, "inference.early_exit=false", *others])
    cfg, runtime, parts = run.cfg, started(run.cfg), dict[str, list[NDArray[Any]]]()
    evaluator = make_evaluator(cfg, runtime, on_devices(run.arch, runtime), run.buffers)

    def see(rows: Predictions, puzzles: Batch) -> None:
        labelled = (puzzles["labels"] != IGNORE_LABEL).any(axis=1)
        for selection, K, D in wanted.asked:
            for name, values in judged(cfg.inference, rows, selection, K, D).items():
                parts.setdefault(f"{selection}/{K}/{D}/{name}", []).append(values[labelled])

    weights, table = runtime.replicate((run.eval_weights, run.puzzle_embedding))
    evaluator.prepare(weights, table)  # seconds do not include compiling
    began = time.perf_counter()
    result = evaluator.run(weights, table, see=see)
    seconds = time.perf_counter() - began
    found = {name: np.concatenate(values) for name, values in parts.items()}
    row_steps = result.work.row_steps
    flops = {
        name: count_row_flops(replace(cfg, inference=InferenceConfig(selection=name)), run.arch) for name in ("last", "residual")
    }
    facts = {"seconds_per_row_step": seconds / row_steps, **{f"flops_{name}": value for name, value in flops.items()}}
    facts["passes"] = sum(passes(run.arch))
    keep.parent.mkdir(parents=True, exist_ok=True)
    part = keep.with_suffix(".part.npz")
    np.savez_compressed(part, **found, **{name: np.array(value) for name, value in facts.items()})  # type: ignore[arg-type]
    part.rename(keep)
    return measured(path, wanted, others, keep)


def judged(way: InferenceConfig, rows: Predictions, selection: str, K: int, D: int) -> Found:
    """For the puzzles of these rows, [N] each: is the one right that is selected of the first K candidates after D steps?"""
    winner, at, candidates = select(rows, replace(way, selection=selection), D - 1, first=K)
    exact: NDArray[Any] = candidates.values["exact_accuracy"]
    return {"right": exact[np.arange(len(winner)), winner], "oracle": np.asarray(exact.any(axis=1)), "row_steps": K * (at + 1)}


def rows_of(seeds: list[dict[str, Found]]) -> list[dict[str, Any]]:
    """A row for each way, from the passes of each seed."""
    standard = min(int(name.split("/")[2]) for name in seeds[0]["steps"] if name.startswith("last/"))
    base = [found["steps"][f"last/1/{standard}/right"] for found in seeds]
    rows: list[dict[str, Any]] = []
    for name, found in seeds[0].items():
        for key in (key.removesuffix("/right") for key in found if key.endswith("/right")):
            selection, K, D = key.split("/")
            of = [each[name] for each in seeds]
            right, oracle, steps = ([each[f"{key}/{what}"] for each in of] for what in ("right", "oracle", "row_steps"))
            failures = sum(int((~r).sum()) for r in right)
            flops = "flops_residual" if selection == "residual" else "flops_last"
            mean_steps = float(np.mean([s.mean() for s in steps]))
            rows.append(
                {
                    "inference": name,
                    "selection": selection,
                    "candidates": int(K),
                    "supervision_steps": int(D),
                    "seeds": len(seeds),
                    "count": len(right[0]),
                    **over_both("exact_accuracy", np.array(right, dtype=float)),
                    **paired(base, right),
                    "oracle_exact_accuracy": float(np.mean([o.mean() for o in oracle])),
                    "selection_failures": sum(int((o & ~r).sum()) for o, r in zip(oracle, right, strict=True)) / max(failures, 1),
                    "candidates_run": mean_steps / int(D),
                    "passes_per_puzzle": mean_steps * float(of[0].get("passes", np.nan)),
                    "flops_per_puzzle": mean_steps * float(of[0][flops]),
                    "seconds_per_puzzle": mean_steps * float(np.mean([each["seconds_per_row_step"] for each in of])),
                }
            )
    return pareto(rows)


@dataclass(frozen=True)
class Interval:
    """A mean with half the width of its 95 % interval and the p value of a true mean of 0; None without a spread."""

    mean: float
    half_width: float | None
    p: float | None


def interval(values: NDArray[np.floating]) -> Interval:
    """The interval of the mean of values [S, N], S seeds on the same N puzzles, over other seeds and puzzles.

    Seeds and puzzles are crossed random effects (analysis of variance); with one seed it is over puzzles alone. It is Student's
    with the seeds' degrees of freedom, which is wide where the puzzles differ more than the seeds, and never too narrow.
    """
    seeds, puzzles = values.shape
    by_puzzle = values.mean(axis=0).var(ddof=1) / puzzles if puzzles > 1 else 0.0
    variance, freedom = by_puzzle, puzzles - 1
    if seeds > 1:
        by_seed = values.mean(axis=1).var(ddof=1) / seeds
        rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
        both = (rest**2).sum() / max((seeds - 1) * (puzzles - 1), 1) / values.size  # counted in each of the two, so once too often
        variance, freedom = max(by_seed + by_puzzle - both, by_seed, by_puzzle), seeds - 1
    mean, error = float(values.mean()), float(np.sqrt(variance))
    if error < ROUNDING:
        return Interval(mean, None, None)
    return Interval(mean, float(stats.t.ppf(0.975, freedom)) * error, float(2 * stats.t.sf(abs(mean) / error, freedom)))


def over_both(name: str, values: NDArray[np.floating]) -> dict[str, float]:
    """The mean of values [seeds, N], and the ends of its 95 % interval over seeds and puzzles."""
    found = interval(values)
    width = found.half_width or 0.0
    return {name: found.mean, f"{name}_low": found.mean - width, f"{name}_high": found.mean + width}


def paired(base: list[NDArray[np.bool_]], right: list[NDArray[np.bool_]]) -> dict[str, float | None]:
    """The difference of the exact accuracy from that of the standard way on the same puzzles and seeds, and its p values."""
    gains = np.array(right, dtype=float) - np.array(base, dtype=float)  # [seeds, N]
    signs = np.sign(gains.sum(axis=0))
    won, lost = int((signs > 0).sum()), int((signs < 0).sum())
    sign_p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else None
    return over_both("difference", gains) | {"p": interval(gains).p, "sign_p": sign_p}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="runs of one model with different seeds; and KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("docs/results/inference_study"))
    parser.add_argument("--quick", action="store_true", help="few candidates and steps, to try it out")
    given = parser.parse_args()
    paths = [path for path in given.runs if path.exists()]
    others = [str(path) for path in given.runs if path not in paths]
    if not paths or any("=" not in text for text in others):
        parser.error(f"{others[0] if others else 'no run'}: neither a run folder nor KEY=VALUE")
    seeds: list[dict[str, Found]] = []
    plan = study(quick=given.quick)
    for number, path in enumerate(paths):
        folder = given.out / "passes" / f"{number}_{path.name}"
        seeds.append({})
        for wanted in plan:
            print(f"{path}: {wanted.name}", flush=True)
            seeds[-1][wanted.name] = measured(path, wanted, others, folder / f"{wanted.name}.npz")
    rows = rows_of(seeds)
    given.out.mkdir(parents=True, exist_ok=True)
    first, words = open_run(paths[0], others), f"{len(paths)} seeds"
    if len(paths) == 1:
        words = "one seed: intervals are over puzzles alone"
    facts = {"run_name": first.cfg.run_name, "checkpoint_step": first.meta.step, "data": first.cfg.data.name}
    facts["puzzles"] = rows[0]["count"]
    write_table(given.out, "frontier", rows, facts, told=False)
    titles, *lines = cells(rows)
    table = "\n".join(f"| {' | '.join(line)} |" for line in [titles, ["---"] * len(titles), *lines])
    command = shlex.join(["python", "scripts/inference_study.py", *sys.argv[1:]])
    names = ", ".join(f"`{path}`" for path in paths)
    page = f"""# Ways of inference

What is done with trained models after training: {names}; {words}; {rows[0]["count"]} held-out puzzles each, the same for all.
K candidates of D supervision steps; noise0.3 = rollouts with normal noise of that std on the answer latent before every step
(PTRM), restarts = random starts of the latents (EqR; these models were not trained with them), copies = symmetric copies.

```
{command}
```

{table}

![Exact accuracy against FLOPs of a puzzle]({given.out.name}/frontier.png)

A *selection failure* is a puzzle that some candidate solves and whose chosen answer is wrong, as a share of all wrong answers.
pass@K is an oracle, which no selection can be.
"""
    given.out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
