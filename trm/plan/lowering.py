"""A step of a run as an XLA module: `python -m trm.plan.lowering STEP FOLDER`, a process of its own for each machine shape.

Reads FOLDER/config.json, the run's settings; traces the training or evaluation step of trm/train.py and trm/evaluate.py through
torch_xla with as many paper devices as the job has chips; writes FOLDER/module.hlo.pb and job.json. Nothing is compiled and no
state is allocated.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from trm.backends.xla import TracingRuntime
from trm.cli import plain_command
from trm.config import Config, from_plain
from trm.core.flops import eval_arguments, train_arguments
from trm.core.programs import eval_program, train_program
from trm.plan.estimate import topology
from trm.plan.workload import architecture_of, step_config
from trm.study.placement import place


def lower(cfg: Config, step: str, runtime: TracingRuntime) -> tuple[bytes, list[dict[str, Any]]]:
    """The module of one of the STEPS, and for each tensor that it uses its parameter, whether it is split by rows or donated."""
    arguments: tuple[Any, ...]
    arch = dataclasses.replace(architecture_of(cfg), torch_kernels=runtime.can.torch_kernels)
    if step == "training":
        program = train_program(dataclasses.replace(step_config(cfg), arch=arch))
        arguments = (state, sums), buffers, batch = train_arguments(cfg, arch, votes=place(cfg.hardware).processes > 1)
        parts = {**state._asdict(), "sums": sums, "fixed": buffers, "batch": batch}
        donated = {*state._fields, "sums"}
    else:
        program = eval_program(arch)
        arguments = eval_arguments(cfg, arch, cfg.eval_batch_size)
        parts = dict(zip(("weights", "buffers", "puzzle_embedding", "carry", "batch"), arguments, strict=True))
        donated = set()
    module, parameters = runtime.lower(program.function, program.rows, *arguments)
    names = [name for name, tree in parts.items() for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return module, [
        {"parameter": number, "rows": name in ("carry", "batch"), "donated": name in donated}
        for number, name in zip(parameters, names, strict=True)
        if number >= 0
    ]


def main(arguments: list[str]) -> None:
    """Write the module, and what trm/plan/aot.py must know to compile it."""
    step, folder = arguments[0], Path(arguments[1])
    cfg = from_plain(json.loads((folder / "config.json").read_text()), str(folder / "config.json"))
    devices, module_file = place(cfg.hardware).devices, folder / "module.hlo.pb"
    module, entries = lower(cfg, step, TracingRuntime(devices))
    module_file.write_bytes(module)
    job = {"module": str(module_file), "arguments": entries, "devices": devices, "topology": topology(cfg.hardware)}
    (folder / "job.json").write_text(json.dumps(job | {"result": str(folder / "result.json")}))


if __name__ == "__main__":
    plain_command(main, __doc__)
