"""The steps of a run as XLA modules: `python -m trm.plan.lowering REQUEST.json`, a process of its own for each machine shape.

Traces the training and evaluation step of trm/train.py and trm/evaluate.py through torch_xla with as many paper devices as the
job has chips, and writes for each NAME.hlo.pb and NAME.json. Nothing is compiled and no state is allocated.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from trm.backends.xla import TracingRuntime
from trm.cli import plain_command
from trm.config import Config, from_plain, to_plain
from trm.core.flops import eval_arguments, train_arguments
from trm.core.programs import eval_program, train_program
from trm.plan.workload import architecture_of, step_config
from trm.study.placement import place


def request(cfg: Config, steps: Sequence[str], out: Path) -> dict[str, Any]:
    """What to write into REQUEST.json: the run's settings, which of the STEPS to lower, and the folder for the modules."""
    return {"config": to_plain(cfg), "steps": list(steps), "out": str(out)}


def arguments_of(tree: Any, *, rows: bool, donated: bool, parameters: list[int]) -> list[dict[str, Any]]:
    """One entry for each tensor of a tree that the module uses, taking numbers from the front of `parameters`."""
    entries = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            number = parameters.pop(0)
            if number >= 0:
                entries.append({"parameter": number, "rows": rows, "donated": donated})
    return entries


def lower_training(cfg: Config, runtime: TracingRuntime) -> tuple[bytes, list[dict[str, Any]]]:
    """The training step's module and what its parameters are."""
    step = step_config(cfg)
    state, fixed, batch = train_arguments(cfg, step.arch, votes=place(cfg.hardware).processes > 1)
    program = train_program(step)
    module, parameters = runtime.lower(program.function, program.rows, state, fixed, batch)
    entries = []
    for name, part in zip(state._fields, state, strict=True):
        entries += arguments_of(part, rows=name == "carry", donated=True, parameters=parameters)
    entries += arguments_of(fixed, rows=False, donated=False, parameters=parameters)
    entries += arguments_of(batch, rows=True, donated=False, parameters=parameters)
    return module, entries


def lower_evaluation(cfg: Config, runtime: TracingRuntime) -> tuple[bytes, list[dict[str, Any]]]:
    """The evaluation step's module and what its parameters are."""
    arch = architecture_of(cfg)
    arguments = eval_arguments(cfg, arch, cfg.eval_batch_size)
    program = eval_program(arch)
    module, parameters = runtime.lower(program.function, program.rows, *arguments)
    entries = []
    for name, part in zip(arguments._fields, arguments, strict=True):
        entries += arguments_of(part, rows=name in ("carry", "batch"), donated=False, parameters=parameters)
    return module, entries


STEPS = {"training": lower_training, "evaluation": lower_evaluation}


def main(arguments: list[str]) -> None:
    """Read the request, write the modules."""
    (path,) = arguments
    wanted = json.loads(Path(path).read_text())
    cfg, out = from_plain(wanted["config"], path), Path(wanted["out"])
    runtime = TracingRuntime(place(cfg.hardware).devices)
    for name in wanted["steps"]:
        module, entries = STEPS[name](cfg, runtime)
        (out / f"{name}.hlo.pb").write_bytes(module)
        (out / f"{name}.json").write_text(json.dumps(entries))


if __name__ == "__main__":
    plain_command(main, __doc__)
