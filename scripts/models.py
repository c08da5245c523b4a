"""The trained networks of models/: `python scripts/models.py NAME ...` trains, publishes and evaluates each and writes its card.

A run that was stopped goes on where it stopped. The runs are outputs/models_NAME; what is published is the state at its end.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import binomtest

from trm.config import data_settings
from trm.core.initial import num_parameters
from trm.run.saved import CARD_FILE, open_run
from trm.tasks.base import task_of

ROOT = Path(__file__).resolve().parents[1]
COSINE = ["optimizer.lr=2e-3", "optimizer.schedule=cosine", "optimizer.lr_min_ratio=0.02"]
EVALUATIONS = ["train.log_every_steps=100", "train.eval_every_steps=1000", "train.checkpoint_every_steps=500"]
MODELS = {
    "sudoku_4x4": ["data=sudoku_4x4", "recipe=tiny", "recursion=t2_n2", *COSINE, "train.max_steps=2000", *EVALUATIONS],
    "sudoku_6x6": [
        *["experiment=record_6x6_fast", "data.num_puzzles=4000", "train.max_steps=2400", "evaluate.max_puzzles=null"],
        *["train.eval_every_steps=1200"],
    ],
    "sudoku_9x9": [
        *["data=sudoku_9x9", "data.num_puzzles=20000", "recipe=tiny", "model.hidden_size=96", "recursion=t3_n6", "hardware=gpu"],
        *["train.global_batch_size=512", "optimizer.lr=1e-3", "optimizer.schedule=cosine", "optimizer.lr_min_ratio=0.02"],
        *["optimizer.warmup_steps=500", "ema.rate=0.999", "train.max_steps=14650"],
        *["train.log_every_steps=500", "train.eval_every_steps=5000", "train.checkpoint_every_steps=5000"],
    ],
    "maze_9x9": ["experiment=maze_small", "hardware=cpu_bf16"],
}
WHAT = {
    "sudoku_4x4": "4x4 Sudoku with one solution and no clue to spare",
    "sudoku_6x6": "6x6 Sudoku (boxes of 2x3) with one solution and no clue to spare",
    "sudoku_9x9": "9x9 Sudoku with one solution and no clue to spare (24 clues on average), generated",
    "maze_9x9": "9x9 perfect mazes",
}

# measured by hand on other puzzles
ELSEWHERE = {
    "sudoku_9x9": (
        "Of 500 test puzzles of Sudoku-Extreme, drawn from 10,000 hard ones, it solves 51.6 % [47.2, 56.0], though "
        "it never saw one:\n"
        "`python -m trm.evaluate checkpoint=models/sudoku_9x9 data=sudoku_extreme data.test_csv=… data.train_csv=…\n"
        "data.num_test_puzzles=500 data.num_puzzles=20`.\n"
    ),
}


def main() -> None:
    """Train, publish and describe the networks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(MODELS))
    parser.add_argument("--run", type=Path, help="a run of one name, or its result of `trm.interop publish`; nothing is trained")
    given = parser.parse_args()
    for name in given.names:
        run = given.run or ROOT / "outputs" / f"models_{name}"
        if given.run is None:
            python("trm.train", *MODELS[name], f"run_name=models_{name}", "tracking=none", "seed=0")
        folder = ROOT / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        used_on = ["hardware=cpu", "hardware.dtype=bfloat16"] if "hardware=gpu" in MODELS[name] else []
        python("trm.interop", "publish", f"checkpoint={run}", str(folder), *used_on)
        summary = json.loads((run / "summary.json").read_text()) if (run / "summary.json").exists() else {}
        machine = f"{summary['runtime']}, {summary['cores']} core(s)" if "cores" in summary else None
        card(name, folder, summary.get("seconds"), machine)


def test_data(name: str) -> list[str]:
    """A folder for the test puzzles alone; they do not depend on the training puzzles."""
    return ["data.num_puzzles=20", f"data.path=data/{name}_test"]


def card(name: str, folder: Path, seconds: float | None, machine: str | None) -> None:
    """Write the card: facts as YAML, which tests/test_published.py holds to the weights, then words."""
    *_, line = python("trm.evaluate", f"checkpoint={folder}", *test_data(name), capture=True).splitlines()
    found, meta = json.loads(line), json.loads((folder / "meta.json").read_text())
    share, count = found["exact_accuracy"], int(found["count"])
    interval = binomtest(round(share * count), count).proportion_ci(method="wilson")
    own = {key: round(found[key], 4) for key in ("optimal", "one_path") if key in found}
    facts = {
        "license": "mit",
        "task": WHAT[name],
        "exact_accuracy": round(share, 4),
        "interval_95": [round(float(end), 4) for end in interval],
        "held_out_puzzles": count,
        **own,
        "steps": meta["step"],
        "steps_planned": meta["config"]["train"]["max_steps"],
        "seed": meta["config"]["seed"],
        "training_seconds": seconds,
        "machine": machine,
        "training_puzzles": meta["training_range"],
        "parameters": num_parameters(open_run(folder, []).arch),
        "sha256": hashlib.sha256((folder / "state.safetensors").read_bytes()).hexdigest(),
        "code": meta["code"],
        "caveats": meta["caveats"],
    }
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    (folder / CARD_FILE).write_text(f"---\n{text}---\n{words(name, facts, meta)}", encoding="utf-8")


def words(name: str, facts: dict[str, Any], meta: dict[str, Any]) -> str:
    """The text of a card, below its facts."""
    config, step, planned = meta["config"], facts["steps"], facts["steps_planned"]
    rounding = ""
    if config["hardware"]["dtype"] == "bfloat16":
        rounding = " The network uses bfloat16:\nanother backend or processor rounds differently and solves a few other puzzles."
    trained = facts["training_puzzles"]
    stream = "training puzzles" if trained["format_version"] > 1 else "puzzles in format version 1"
    last = trained["first"] + trained["puzzles"] - 1
    apart = " or a symmetric copy of one" if task_of(data_settings(config["data"])).has_classes else ""
    stopped = ""
    if step != planned:
        stopped = (
            f"The run was stopped at step {step:,}, but its schedule ended at {planned:,}. The command trains the same number of "
            "steps with\na schedule that ends there, so it makes another network.\n\n"
        )
    command = shlex.join(["python", "-m", "trm.train", *MODELS[name], "seed=0"])
    machine = facts.get("machine") or "not recorded"
    return f"""# {name}

A Tiny Recursive Model for {WHAT[name]}.
The weights are the EMA weights at step {step:,} of {planned:,} of one run. Machine: {machine}.
The interval is Wilson's for that number of puzzles; it does not cover other seeds. `python -m trm.interop import` imports public
checkpoints of the paper's size.{rounding}

It was trained on {trained["puzzles"]:,} generated puzzles:
numbers {trained["first"]:,} to {last:,} of seed {trained["seed"]}'s {stream}.
The held-out puzzles are the first {facts["held_out_puzzles"]:,} test puzzles of seed {config["data"]["seed"]};
none of them is a training puzzle{apart}.

{stopped}```
{command}
python scripts/models.py {name}                            # the same, and this card
# the figures above, on the same puzzles:
python -m trm.evaluate checkpoint=models/{name} {" ".join(test_data(name))}
```
{ELSEWHERE.get(name, "")}"""


def python(module: str, *arguments: str, capture: bool = False) -> str:
    """Run a command of this project. Returns its output if `capture`."""
    out = subprocess.PIPE if capture else None
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=out, text=True, check=True).stdout or ""


if __name__ == "__main__":
    main()
