"""Measure this machine: `python -m trm.bench SUBCOMMAND [KEY=VALUE ...] [--json FILE] [--sizes A,B] [--ways A,B] [--rounds N]`.

  step         samples/s of the training and the evaluation step, beside the machine's rates of matrix products (matmul:
               torch.mm, oneDNN: trm/backends/onednn.py); "ordinary" is the same model as ordinary eager PyTorch
               --sizes demo,6x6,paper_mlp,paper_attention
               --ways configured,ordinary (of: xla,inductor,eager,ordinary_compiled too)
  peers        samples/s beside the paper's released code and nano-trm, from your own checkouts of both
               --reference DIR (github.com/SamsungSAILMontreal/TinyRecursiveModels)   --nano DIR (github.com/olivkoch/nano-trm)
               --sizes 4x4,6x6,paper_mlp; hardware.dtype=bfloat16 for all
  kernels      how a training step spends its time, by torch's profiler   --sizes demo,6x6,paper_mlp,paper_attention
  loader       batches/s of the loader alone, against what a CPU and a TPU v4 consume
  build_data   puzzles/s of building datasets   --sizes 4x4,6x6,9x9,csv
  host         milliseconds of host time in a training step, compiled and in trm.train's loop, on one device and on the mesh of
               eight
  compile      seconds until the first step at the paper's size, for T*n from 4 to 32
  checkpoint   seconds by which saving delays training, seconds until it is on disk, bytes, seconds to read it again
               --sizes demo,paper

  compare SUBCOMMAND ... --revisions A,B [--turns N]     two git revisions in turns, A B A B; "." is the working tree
  compare SUBCOMMAND ... --configs 'KEY=VALUE ...' 'KEY=VALUE ...' [--turns N]
               the ratio of each figure, with its 95 % interval

KEY=VALUE changes the settings that are measured, as in trm.train. --json FILE also writes the numbers, single measurements
included, with the machine and the versions. The numbers are only reliable on a machine that does nothing else.
"""

import argparse
import contextlib
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.compare import TURNS, compare, configs, revisions
from bench.machine import Row, facts, stopped, table, until_stopped
from trm.cli import options
from trm.errors import EXIT_INTERRUPTED, UserError

# Modules of bench, imported when they are asked for, since torch takes seconds. `measure(overrides, ...)` returns the rows; the
# options that it takes beside are `sizes` where the module has SIZES (the default: all), `ways` where it has WAYS (the default:
# DEFAULT_WAYS), `rounds` where it has ROUNDS (the default), and a folder for each name in CHECKOUTS.
SUBCOMMANDS = {
    "step": "step",
    "peers": "peers",
    "kernels": "kernels",
    "host": "host",
    "loader": "loader",
    "build_data": "build_data",
    "compile": "compiling",
    "checkpoint": "checkpoint",
}
BENCHMARK_OPTIONS = ("sizes", "ways", "rounds", "reference", "nano")


def options_of(name: str, benchmark: ModuleType, given: argparse.Namespace) -> dict[str, Any]:
    """The options to call a benchmark with. Raises UserError for one that it does not have."""
    sizes, ways, rounds = (getattr(benchmark, constant, None) for constant in ("SIZES", "WAYS", "ROUNDS"))
    for option, known in (("sizes", sizes), ("ways", ways), ("rounds", rounds)):
        if known is None and getattr(given, option) is not None:
            raise UserError(f"--{option}: {name} has none: leave it out")
    chosen: dict[str, Any] = {name: getattr(given, name) for name in getattr(benchmark, "CHECKOUTS", ())}
    for name in ("reference", "nano"):
        if name not in chosen and getattr(given, name) is not None:
            raise UserError(f"--{name} is of peers: leave it out")
    if sizes is not None:
        chosen["sizes"] = _words("--sizes", given.sizes, list(sizes), list(sizes))
    if ways is not None:
        chosen["ways"] = _words("--ways", given.ways, list(ways), list(benchmark.DEFAULT_WAYS))
    if rounds is not None:
        chosen["rounds"] = rounds if given.rounds is None else given.rounds
        if chosen["rounds"] < 1:
            raise UserError(f"--rounds {given.rounds}: at least 1")
    return chosen


def _words(option: str, text: str | None, known: list[str], default: list[str]) -> list[str]:
    chosen = default if text is None else list(dict.fromkeys(text.split(",")))
    for word in chosen:
        if word not in known:
            raise UserError(f"{option} {word}: choose from {', '.join(known)}")
    return chosen


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    comparing = arguments[0] == "compare"
    name, *rest = arguments[comparing:] or [""]
    if name not in SUBCOMMANDS:
        raise UserError(f"{name or 'nothing'} is not a benchmark: choose one of {', '.join(SUBCOMMANDS)}")
    given = _parse(rest, comparing)
    benchmark = importlib.import_module(f"bench.{SUBCOMMANDS[name]}")
    chosen = options_of(name, benchmark, given)
    machine = facts()
    rows: list[Row] = []
    with until_stopped():
        rows.extend(_compare(name, given) if comparing else benchmark.measure(given.rest, **chosen))
    print(table(rows))
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    if stopped():
        print("interrupted: these are the figures of what was measured until then")
    if given.json is not None:
        record = {"benchmark": name, "arguments": arguments, "machine": machine, "rows": rows}
        try:
            given.json.write_text(json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {given.json}: {error.strerror}: choose another file") from error
    if stopped():
        sys.exit(EXIT_INTERRUPTED)


def _parse(arguments: list[str], comparing: bool) -> argparse.Namespace:
    spec: dict[str, dict[str, Any]] = {"json": {"type": Path}, "sizes": {}, "ways": {}, "rounds": {"type": int}}
    spec |= {"reference": {"type": Path}, "nano": {"type": Path}}
    if comparing:
        spec |= {"turns": {"type": int, "default": TURNS}, "revisions": {}, "configs": {"nargs": 2}}
    given = options("trm.bench", arguments, words=False, **spec)
    if comparing and (given.revisions is None) == (given.configs is None):
        raise UserError("compare needs one of --revisions A,B and --configs 'KEY=VALUE ...' 'KEY=VALUE ...'")
    if comparing and given.turns < 2:
        raise UserError(f"--turns {given.turns}: at least 2, for an interval")
    return given


def _compare(name: str, given: argparse.Namespace) -> list[Row]:
    chosen = {f"--{option}": getattr(given, option) for option in BENCHMARK_OPTIONS}
    arguments = [*given.rest, *(str(word) for pair in chosen.items() if pair[1] is not None for word in pair)]
    with revisions(given.revisions) if given.revisions else contextlib.nullcontext(configs(given.configs)) as sides:
        return compare(name, arguments, sides, given.turns)
