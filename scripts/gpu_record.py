"""The paper's task on one GPU within a time limit: `python scripts/gpu_record.py [OPTIONS] [KEY=VALUE ...]`.

Three parts, each made of the project's commands. parity: the tests on this GPU. speed: samples/s of the training step in three
WAYS, and of the paper's beside a plain trainer. train: experiment=fast_sudoku in the fastest way until the limit, evaluated each
minute. The same command resumes from outputs/gpu_record, and with --go-on on another machine; it repeats nothing. What fails leaves
the rest to run, and training that fails is tried once more in the plain way. The exit code is then 1.

  --out DIR         where results go (default: $OUT, else gpu_record): record.md, record.json, curve.csv, log.txt, all of them
                    while the command runs, and at its end the checkpoint as state.json, state.0, state.1, ...
  --limit-s N       seconds that the command may take, the import of torch before it not counted (default: 560)
  --go-on DIR       results of an earlier command
  --data DIR        folder of sudoku_extreme_train_1k.csv and sudoku_extreme_test_hard_10k.csv (default: ../shared/data)
  --reference DIR   a checkout of the released code, whose samples/s are measured too
  --parts A,B       some of parity, speed, train, in the order in which they run; before train the others get half of the limit
  --hardware NAME   default: gpu
  --every-s N       seconds between evaluations (default: 60)
  --mib N           the most that the checkpoint may take (default: 45)

KEY=VALUE changes the settings of the run. Its evaluations answer 240 test puzzles by eight symmetric copies of each
(inference=votes8): "votes8" is the accuracy of their vote, "standard" the mean accuracy of a single copy. In the time that is left
at the end the command answers all test puzzles once, and 1,000 by eight copies. Intervals are Wilson's, over puzzles.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from trm.cli import ROOT, options, plain_command
from trm.errors import EXIT_PREEMPTED, EXIT_USER_ERROR, CheckpointError, RunFailure, UserError
from trm.ground.folder import CHECKPOINTS, read_summary, write_summary
from trm.inference.compute import with_intervals
from trm.run.checkpoint import Meta, Scores, find_checkpoints, first_whole, saved_steps, write_checkpoint

sys.path.insert(0, str(ROOT))
from bench.machine import facts

RUN, RECORD = Path("outputs/gpu_record"), "record.json"
PLAIN, TOKENS, GRAPH = "plain", "tokens", "tokens, one graph"
WAYS = {TOKENS: [], GRAPH: ["hardware.step_graph=true"], PLAIN: ["hardware.token_multiple=1"]}
CSV = {"train_csv": "sudoku_extreme_train_1k.csv", "test_csv": "sudoku_extreme_test_hard_10k.csv"}
END_S, PARITY_S = 90, 120  # most of the limit that saving and the last evaluations, and parity, may take
LEAST_S, SAVE_S, WRITE_EVERY_S = 30, 30, 20  # for a part; for a command that was asked to stop; between records
LOG_EVERY = 50
MIB = 2**20
PART_BYTES = 15 * MIB
ABOUT_FILE, METRICS_FILE = "state.json", "metrics.jsonl"
FINAL = {"standard": "null", "votes8": "1000"}  # test puzzles of the last evaluations


@dataclass
class Job:
    """One start of the command."""

    given: argparse.Namespace
    out: Path
    record: dict[str, Any]
    began: float = field(default_factory=time.monotonic)
    reserved_s: float = 0.0  # of the limit, for the parts after this one
    failed: list[str] = field(default_factory=list)

    def left_s(self) -> float:
        """Seconds that this part may still take."""
        return float(self.given.limit_s) - (time.monotonic() - self.began) - self.reserved_s

    def run(self, name: str, words: list[str], limit_s: float, **variables: str) -> tuple[int, str]:
        """Exit code and output of a command of the project, which gets SIGTERM after `limit_s`, and is killed if it goes on.

        The output goes into log.txt while it runs, and the record is written. Processes that it started end with it.
        """
        print(f"== {name}, {limit_s:.0f} s at most", flush=True)
        began = time.monotonic()
        command, environment = [sys.executable, "-m", *words], os.environ | variables
        with (self.out / "log.txt").open("a+", errors="replace") as log:
            print(f"== {' '.join(words)}", file=log, flush=True)
            start = log.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
            )
            try:
                while process.poll() is None and (left_s := began + max(limit_s, 1) - time.monotonic()) > 0:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(min(left_s, WRITE_EVERY_S))
                    write(self)
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(3, min(SAVE_S, self.left_s())))
                with contextlib.suppress(OSError):  # it has ended, and all that it started
                    os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
            log.seek(start)
            text = log.read()
            print(f"\n== exit code {code}", file=log)
        print(f"== {name}: {time.monotonic() - began:.0f} s, exit code {code}", flush=True)
        return code, text


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    defaults = {"limit_s": 560.0, "every_s": 60.0, "mib": 45.0}
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
    for number, part in enumerate(chosen):
        job.reserved_s = given.limit_s / 2 if "train" in chosen[number + 1 :] else 0
        if job.left_s() < LEAST_S:
            job.failed.append(f"{part}: no time was left")
        elif part == "train" or part not in record:
            PARTS[part](job)
    write(job)
    print((job.out / "record.md").read_text())
    if job.failed:
        raise RunFailure("; ".join(job.failed))


def parity(job: Job) -> None:
    """Run the parity tests of this hardware, and the test that a replayed step equals the step."""
    on_gpu = job.given.hardware == "gpu"
    tests = [str(ROOT / "tests" / name) for name in ("test_parity.py", "test_replay.py")]
    chosen = ["-n", "10", "-k", "gpu"] if on_gpu else ["-k", "first_gradients_float64 and eager and mlp_prefix"]
    words = ["pytest", *tests, "-q", "-rA", "-p", "no:cacheprovider", *chosen]
    code, text = job.run("parity", words, min(PARITY_S, job.left_s()), TORCHINDUCTOR_COMPILE_THREADS="2")
    lines = text.strip().splitlines() or ["no output"]
    if code < 0:
        job.failed.append(f"parity was stopped by signal {-code} and has no result: {lines[-1]}")
        return
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
        if (limit_s := job.left_s()) < 1:
            break
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            job.run(f"speed: {name}", ["trm.bench", *words, "--sizes", "paper_mlp", "--rounds", "3", "--json", str(file)], limit_s)
            found = json.loads(file.read_text())["rows"] if file.exists() else []
        rows += [{"measured": name} | {k: row[k] for k in shown if k in row} for row in found if row["step"] == "train"]
    if not rows:
        job.failed.append("speed: nothing was measured")
        return
    job.record["speed"] = rows
    trusted = [way for way in WAYS if way != GRAPH or job.record.get("parity", {}).get("passed")]
    rates = {row["measured"]: row["samples/s"] for row in rows if row["measured"] in trusted}
    job.record["way"] = max(rates, key=lambda way: rates[way], default=None)


def train(job: Job) -> None:
    """Train until the limit, write the checkpoint in parts, and evaluate in the time that is left."""
    given, record, before = job.given, job.record, max(saved_steps(RUN), default=0)
    data = [f"data.{key}={(given.data or ROOT.parent / 'shared' / 'data') / name}" for key, name in CSV.items()]
    for way in dict.fromkeys((record.get("way") or TOKENS, PLAIN)):
        step_s = next((row["ms"] / 1e3 for row in record.get("speed", []) if row["measured"] == way), 0.15)
        every = max(1, round(given.every_s / step_s / LOG_EVERY)) * LOG_EVERY
        words = ["experiment=fast_sudoku", f"hardware={given.hardware}", *WAYS[way], f"run_name={RUN.name}", "tracking=none", *data]
        words += ["inference=votes8", "evaluate.max_puzzles=240", f"train.eval_every_steps={every}"]
        words += [f"train.log_every_steps={LOG_EVERY}", "train.checkpoint_every_steps=null", "train.keep_checkpoints=1"]
        words += given.rest
        code, text = job.run(f"train, {way}", ["trm.train", *words], job.left_s() - min(END_S, given.limit_s / 3))
        if code in (0, EXIT_PREEMPTED):
            break
        last = text.strip().splitlines()[-1:] or ["no output"]
        job.failed.append(f"training ended with exit code {code}: {last[0]}; {job.out / 'log.txt'} has all that it said")
        if code == EXIT_USER_ERROR or job.left_s() < 2 * END_S:
            break
    if not saved_steps(RUN):
        job.failed.append("training: no step was done")
        return
    summary = read_summary(RUN) or {}
    start = {"machine": facts(), "from_step": before, "to_step": max(saved_steps(RUN)), "exit_code": code, "settings": words}
    record.setdefault("starts", []).append(start | {"warnings": summary.get("warnings")})
    record |= {"total_steps": summary["total_steps"], "training_s": summary["seconds"]} if summary else {}
    try:
        record["checkpoint"] = split(RUN, job.out, given.mib)
    except CheckpointError as error:
        job.failed.append(str(error))
    kept = ("evaluate.max_puzzles=", "inference.supervision_steps=")  # of a trial, and what inference=NAME alone would set anew
    same = [word for word in given.rest if word.startswith(kept)]
    for name, puzzles in FINAL.items():
        asked = ["trm.evaluate", f"checkpoint={RUN}", f"inference={name}", f"evaluate.max_puzzles={puzzles}", *same]
        if (limit_s := job.left_s() - 5) > 5 and (done := job.run(f"evaluation, {name}", asked, limit_s))[0] == 0:
            found = json.loads(next(line for line in reversed(done[1].splitlines()) if line.startswith("{")))
            row = {"step": found["checkpoint_step"], "inference": name, "supervision_steps": found["steps"]}
            row["exact_accuracy"] = found["exact_accuracy"]
            record.setdefault("final", []).extend(with_intervals([row | {"count": found["count"]}]))


def curve(metrics: Path) -> list[dict[str, Any]]:
    """Two rows for each evaluation: the step, the seconds of training until then, and an accuracy with its interval."""
    rows: list[dict[str, Any]] = []
    seconds, last = 0.0, 0
    for entry in map(json.loads, metrics.read_text().rpartition("\n")[0].splitlines()):  # a run may be writing its last line
        step = entry["global_step"]
        if entry["kind"] == "train":  # the first lap, of one step, has no time
            seconds, last = seconds + (step - last) * entry.get("step_time_s", 0.0), step
        elif entry["kind"] == "eval":
            alone = entry.get("single_exact_accuracy", entry["exact_accuracy"])  # an evaluation by one copy has the latter only
            for name, exact in (("standard", alone), ("votes8", entry["exact_accuracy"])):
                row = {"step": step, "training_s": round(seconds, 1), "inference": name, "exact_accuracy": exact}
                rows += with_intervals([row | {"count": entry["count"]}])
    return rows


def write(job: Job) -> None:
    """Write the record as JSON, also into the run folder, the curve as CSV, and all of it as a page."""
    record = job.record
    if (RUN / METRICS_FILE).exists():
        record["curve"] = curve(RUN / METRICS_FILE)
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
    lines += [f"- FAILED: {words}" for words in job.failed]
    for start in record.get("starts", []):
        machine = start["machine"].get("accelerator") or start["machine"]["processor"]
        lines.append(f"- steps {start['from_step']} to {start['to_step']} of {record.get('total_steps')} on {machine}")
    lines += ["", *table(record.get("curve", [])), "The last evaluations:", "", *table(record.get("final", []))]
    lines += [f"Seconds of training: {record.get('training_s')}. Checkpoint: {record.get('checkpoint')}"]
    (job.out / "record.md").write_text("\n".join(lines) + "\n")


def split(run_dir: Path, folder: Path, most_mib: float) -> dict[str, Any]:
    """Write the newest checkpoint as state.json and state.0, state.1, ... of at most PART_BYTES each; returns their sizes in MiB.

    Where it is larger than `most_mib`, the rows' latents are left out first, so that every row starts its next puzzle. Then the
    averaged weights, which training does not read, are kept as their differences from the weights in bfloat16. Raises
    CheckpointError where even that is too large.
    """
    whole = first_whole(find_checkpoints(run_dir), print)
    if whole is None:
        raise CheckpointError(f"{run_dir}: every checkpoint is damaged")
    _, tensors, meta = whole
    latents = {name: tensor for name, tensor in tensors.items() if name.startswith("carry/latents/")}
    fresh = {name: tensor for name, tensor in tensors.items() if name not in latents}
    fresh["carry/halted"] = torch.ones_like(tensors["carry/halted"])
    near = {name: (t - tensors[_weight(name)]).bfloat16() if name.startswith("ema/") else t for name, t in fresh.items()}
    about: dict[str, Any] = {}
    for words, kept in (("all", tensors), ("rows start anew", fresh), ("rows start anew, average in bfloat16", near)):
        blob = save({name: tensor.contiguous() for name, tensor in kept.items()})
        packed = blob if len(blob) > 2 * most_mib * MIB else _packed(blob)  # it is more than half as large when compressed
        about = {"kept": words, "bytes": len(blob)}
        about["latents"] = {} if kept is tensors else {name: [str(t.dtype), list(t.shape)] for name, t in latents.items()}
        if len(packed) <= most_mib * MIB:
            break
    else:
        raise CheckpointError(f"{run_dir}: its checkpoint takes {len(packed) / MIB:.1f} MiB, more than {most_mib:g}")
    parts = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
    for old in folder.glob("state.*"):
        old.unlink()
    for number, part in enumerate(parts):
        (folder / f"state.{number}").write_bytes(part)
    about |= {"meta": asdict(meta), "summary": read_summary(run_dir), "metrics": (run_dir / METRICS_FILE).read_text()}
    about |= {"parts": len(parts), "sha256": hashlib.sha256(packed).hexdigest()}
    (folder / ABOUT_FILE).write_text(json.dumps(about) + "\n")
    sizes = [round(len(part) / MIB, 1) for part in parts]
    return {
        "step": meta.step,
        "kept": about["kept"],
        "unpacked MiB": round(sum(t.nbytes for t in tensors.values()) / MIB, 1),
        "MiB": sizes,
    }


def join(folder: Path, run_dir: Path) -> bool:
    """Write the files of `split` into a run folder; False where that has a checkpoint of this step or a later one."""
    try:
        about = json.loads((folder / ABOUT_FILE).read_text())
        packed = b"".join((folder / f"state.{number}").read_bytes() for number in range(about["parts"]))
        whole = hashlib.sha256(packed).hexdigest() == about["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: {error}: give the folder of results of an earlier command") from error
    if not whole:
        raise UserError(f"{folder}: its parts are not those in {ABOUT_FILE}: copy all of them")
    meta = Meta(**about["meta"] | {"scores": Scores(**about["meta"]["scores"])})
    if meta.step <= max(saved_steps(run_dir), default=-1):
        return False
    tensors: dict[str, Tensor] = load(_unpacked(packed)[: about["bytes"]])
    for name, (dtype, shape) in about["latents"].items():
        tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
    for name, tensor in tensors.items():
        if name.startswith("ema/") and tensor.dtype == torch.bfloat16:
            tensors[name] = tensors[_weight(name)] + tensor
    (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_checkpoint(run_dir / CHECKPOINTS / f"step_{meta.step}", tensors, meta)
    (run_dir / METRICS_FILE).write_text(about["metrics"])
    write_summary(run_dir, about["summary"])
    return True


def _packed(blob: bytes) -> bytes:
    """Compressed, with the first bytes of all numbers of four beside one another, then the second, ...: exponents are alike."""
    return zlib.compress(np.frombuffer(blob + bytes(-len(blob) % 4), np.uint8).reshape(-1, 4).T.tobytes(), 1)


def _unpacked(packed: bytes) -> bytes:
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(4, -1).T.tobytes()


def _weight(name: str) -> str:
    return f"weights/{name.removeprefix('ema/')}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table and an empty line; nothing without rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[f"{row[name]:.4g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells)] + [""] if rows else []


PARTS = {"parity": parity, "speed": speed, "train": train}

if __name__ == "__main__":
    plain_command(main, __doc__, needs_arguments=False)
