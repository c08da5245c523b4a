"""The paper's task on one GPU within a time limit: `python scripts/gpu_record.py [OPTIONS] [KEY=VALUE ...]`.

Three parts, each made of the project's commands. parity: the tests on this GPU. speed: samples/s of the training step in three
WAYS, and of the paper's beside a plain trainer. train: experiment=fast_sudoku in the fastest way until the limit, evaluated each
minute. What is done is not done again: the same command goes on here, from outputs/gpu_record, and with --go-on on another machine.

  --out DIR         where results go (default: $OUT, else gpu_record): record.md, record.json, curve.csv, log.txt, the checkpoint as
                    state.json, state.0, state.1, ... (scripts/run_parts.py)
  --limit-s N       seconds that the command may take (default: 570); parity and speed take half of it at most
  --go-on DIR       results of an earlier command
  --data DIR        folder of sudoku_extreme_train_1k.csv and sudoku_extreme_test_hard_10k.csv (default: ../shared/data)
  --reference DIR   a checkout of the released code, whose samples/s are measured too
  --parts A,B       some of parity, speed, train
  --hardware NAME   default: gpu
  --every-s N       seconds between evaluations (default: 60)
  --mib N           the most that the checkpoint may take (default: 45)

KEY=VALUE changes the settings of the run. Its evaluations ask eight symmetric copies of each of 240 test puzzles
(inference=votes8): "votes8" is what most of them say, "standard" the mean of one copy alone. In the time that is left at the end
all test puzzles are asked once, and 1,000 by eight copies. Intervals are Wilson's, over puzzles.
"""

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trm.cli import ROOT, options, plain_command
from trm.errors import EXIT_PREEMPTED, RunFailure, UserError
from trm.ground.folder import read_summary
from trm.inference.compute import with_intervals
from trm.run.checkpoint import saved_steps

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT))
from run_parts import join, split

from bench.machine import facts

RUN, RECORD = Path("outputs/gpu_record"), "record.json"
WAYS = {"plain": ["hardware.token_multiple=1"], "tokens": [], "tokens, one graph": ["hardware.step_graph=true"]}
CSV = {"train_csv": "sudoku_extreme_train_1k.csv", "test_csv": "sudoku_extreme_test_hard_10k.csv"}
END_S, PARITY_S = 90, 150  # most of the limit that saving and the last evaluations, and parity, may take
LOG_EVERY = 50
FINAL = {"standard": "null", "votes8": "1000"}  # test puzzles of the last evaluations


@dataclass
class Job:
    """One start of the command."""

    given: argparse.Namespace
    out: Path
    record: dict[str, Any]
    began: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """Seconds until the limit."""
        return float(self.given.limit_s) - (time.monotonic() - self.began)

    def run(self, name: str, words: list[str], limit_s: float, **variables: str) -> tuple[int, str]:
        """Exit code and output of a command of the project. After `limit_s` it is asked to end, and killed if it does not."""
        print(f"== {name}, {limit_s:.0f} s at most", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            command, environment = [sys.executable, "-m", *words], os.environ | variables
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            try:
                process.wait(max(limit_s, 1))
            except subprocess.TimeoutExpired:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S / 3)
            finally:
                process.kill()
                code = process.wait()
            output.seek(0)
            text = output.read()
        print(f"== {name}: {time.monotonic() - began:.0f} s, exit code {code}", flush=True)
        with (self.out / "log.txt").open("a") as log:
            log.write(f"== {' '.join(words)}\n{text}\n== exit code {code}\n")
        return code, text


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    defaults = {"limit_s": 570.0, "every_s": 60.0, "mib": 45.0}
    spec: dict[str, dict[str, Any]] = {name: {"type": float, "default": value} for name, value in defaults.items()}
    spec |= {name: {"type": Path} for name in ("out", "go_on", "data", "reference")}
    spec |= {"parts": {"default": ",".join(PARTS)}, "hardware": {"default": "gpu"}}
    given = options("gpu_record.py", arguments, words=False, **spec)
    chosen = given.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        raise UserError(f"--parts {given.parts}: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    source = given.go_on if given.go_on is not None and join(given.go_on, RUN) else RUN
    record = json.loads((source / RECORD).read_text()) if (source / RECORD).exists() else {}
    job = Job(given, given.out or Path(os.environ.get("OUT") or "gpu_record"), record)
    for folder in (job.out, RUN):
        folder.mkdir(parents=True, exist_ok=True)
    for part, function in PARTS.items():
        if part in chosen and (part == "train" or part not in record):
            function(job)
            write(job)
    write(job)
    print((job.out / "record.md").read_text())


def parity(job: Job) -> None:
    """The parity tests of this hardware, and that a replayed step is the step."""
    on_gpu = job.given.hardware == "gpu"
    tests = [str(ROOT / "tests" / name) for name in ("test_parity.py", "test_replay.py")]
    chosen = ["-n", "10", "-k", "gpu"] if on_gpu else ["-k", "first_gradients_float64 and eager and mlp_prefix"]
    words = ["pytest", *tests, "-q", "-rA", "-p", "no:cacheprovider", *chosen]
    code, text = job.run("parity", words, min(PARITY_S, job.given.limit_s / 4), TORCHINDUCTOR_COMPILE_THREADS="2")
    lines = text.strip().splitlines() or ["no output"]
    errors = sorted({line for line in lines if "largest relative" in line})
    job.record["parity"] = {"passed": code == 0, "says": lines[-1], "errors": errors}


def speed(job: Job) -> None:
    """Samples/s of the run's training step in three ways, then of the paper's beside a plain trainer and the released code."""
    given, on_gpu = job.given, job.given.hardware == "gpu"
    own = ["step", "experiment=fast_sudoku", f"hardware={given.hardware}", "train.global_batch_size=384", *given.rest]
    paper = [f"hardware={given.hardware}", "train.global_batch_size=768", "evaluate.batch_size=768"]
    asked = {
        name: [*own, *way, "--ways", "configured"] for name, way in WAYS.items() if on_gpu or "hardware.step_graph=true" not in way
    }
    if on_gpu:
        asked["the paper's step"] = ["step", *paper, "--ways", "configured,ordinary_compiled"]
    if given.reference is not None:
        asked["released code"] = ["peers", *paper, "hardware.dtype=bfloat16", "--reference", str(given.reference)]
    shown = ("way", "ms", "samples/s", "peak GB", "here / this", "times ordinary_compiled")
    rows = []
    for name, words in asked.items():
        if (limit_s := job.left_s() - given.limit_s / 2) < 1:
            break
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            job.run(f"speed: {name}", ["trm.bench", *words, "--sizes", "paper_mlp", "--rounds", "3", "--json", str(file)], limit_s)
            found = json.loads(file.read_text())["rows"] if file.exists() else []
        rows += [{"measured": name} | {k: row[k] for k in shown if k in row} for row in found if row["step"] == "train"]
    job.record["speed"] = rows
    job.record["way"] = max((row for row in rows if row["measured"] in WAYS), key=lambda row: row["samples/s"], default={}).get(
        "measured"
    )


def train(job: Job) -> None:
    """Train until the limit, write the checkpoint in parts, evaluate in what time is left."""
    given, record, before = job.given, job.record, max(saved_steps(RUN), default=0)
    way = record.get("way") or "tokens"
    step_s = next((row["ms"] / 1e3 for row in record.get("speed", []) if row["measured"] == way), 0.15)
    every = max(1, round(given.every_s / step_s / LOG_EVERY)) * LOG_EVERY
    data = [f"data.{key}={(given.data or ROOT.parent / 'shared' / 'data') / name}" for key, name in CSV.items()]
    words = ["experiment=fast_sudoku", f"hardware={given.hardware}", *WAYS[way], f"run_name={RUN.name}", "tracking=none", *data]
    words += [
        "inference=votes8",
        "evaluate.max_puzzles=240",
        f"train.eval_every_steps={every}",
        f"train.log_every_steps={LOG_EVERY}",
    ]
    words += ["train.checkpoint_every_steps=null", "train.keep_checkpoints=1", *given.rest]
    code, text = job.run("train", ["trm.train", *words], job.left_s() - min(END_S, given.limit_s / 4))
    if code not in (0, EXIT_PREEMPTED):
        last = text.strip().splitlines()[-1:] or ["no output"]
        raise RunFailure(f"training ended with exit code {code}: {last[0]}; {job.out / 'log.txt'} has all that it said")
    summary = read_summary(RUN) or {}
    start = {
        "machine": facts(),
        "from_step": before,
        "to_step": summary["steps"],
        "settings": words,
        "warnings": summary["warnings"],
    }
    record.setdefault("starts", []).append(start)
    record |= {"total_steps": summary["total_steps"], "training_s": summary["seconds"], "curve": curve(RUN / "metrics.jsonl")}
    record["checkpoint"] = split(RUN, job.out, given.mib)
    write(job)
    fewer = [word for word in given.rest if word.startswith("evaluate.max_puzzles=")]  # of a trial
    for name, puzzles in FINAL.items():
        asked = ["trm.evaluate", f"checkpoint={RUN}", f"inference={name}", f"evaluate.max_puzzles={puzzles}", *fewer]
        if (limit_s := job.left_s() - 5) > 5 and (done := job.run(f"evaluation, {name}", asked, limit_s))[0] == 0:
            found = json.loads(done[1].strip().splitlines()[-1])
            row = {
                "step": found["checkpoint_step"],
                "inference": name,
                "exact_accuracy": found["exact_accuracy"],
                "count": found["count"],
            }
            record.setdefault("final", []).extend(with_intervals([row]))


def curve(metrics: Path) -> list[dict[str, Any]]:
    """Two rows for each evaluation: the step, seconds of training until then, and an accuracy with its interval."""
    rows: list[dict[str, Any]] = []
    seconds, last = 0.0, 0
    for entry in map(json.loads, metrics.read_text().splitlines()):
        step = entry["global_step"]
        if entry["kind"] == "train":  # the first lap, of one step, has no time
            seconds, last = seconds + (step - last) * entry.get("step_time_s", 0.0), step
        elif entry["kind"] == "eval":
            alone = entry.get("single_exact_accuracy", entry["exact_accuracy"])  # which one copy does not say beside its own
            for name, exact in (("standard", alone), ("votes8", entry["exact_accuracy"])):
                row = {"step": step, "training_s": round(seconds, 1), "inference": name, "exact_accuracy": exact}
                rows += with_intervals([row | {"count": entry["count"]}])
    return rows


def write(job: Job) -> None:
    """The record as JSON, also into the run folder, the curve as CSV, all of it as a page."""
    record = job.record
    for folder in (job.out, RUN):
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    if record.get("curve"):
        with (job.out / "curve.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(record["curve"][0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(record["curve"])
    lines = ["# experiment=fast_sudoku within a time limit", ""]
    if found := record.get("parity"):
        lines += [f"Parity: {'passed' if found['passed'] else 'NOT PASSED'} ({found['says']})", ""]
    lines += [*table(record.get("speed", [])), f"Way of training: {record.get('way') or 'tokens'}"]
    for start in record.get("starts", []):
        machine = start["machine"].get("accelerator") or start["machine"]["processor"]
        lines.append(f"- steps {start['from_step']} to {start['to_step']} of {record['total_steps']} on {machine}")
    lines += ["", *table(record.get("curve", [])), "The last evaluations:", "", *table(record.get("final", []))]
    lines += [f"Seconds of training: {record.get('training_s')}. Checkpoint: {record.get('checkpoint')}"]
    (job.out / "record.md").write_text("\n".join(lines) + "\n")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table, and an empty one; nothing without rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[f"{row[name]:.4g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells)] + [""] if rows else []


PARTS = {"parity": parity, "speed": speed, "train": train}

if __name__ == "__main__":
    plain_command(main, __doc__, needs_arguments=False)
