"""Compile one XLA module for a TPU that is not there: `PYTHON aot.py JOB.json`, run by an interpreter with jax and libtpu.

The file imports neither trm nor torch, since that interpreter may have a venv of its own. JOB.json: {"module": file with an
HloModuleProto, "arguments": [{"parameter", "rows", "donated"}], "devices": N, "topology": "v4:2x4x4", "result": file to write}.
The private calls are those of jax 0.7.1, which its version check pins.
"""

import json
import math
import os
import re
import sys
import time
from collections import Counter
from io import BytesIO
from typing import Any

JAX_VERSION = "0.7.1"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


def collectives(hlo: str) -> list[dict[str, Any]]:
    """[{"op", "bytes", "dtypes"}] of every collective in a compiled module's text; dtypes has the bytes of each dtype.

    The result of a collective has a shape such as `f32[2,3]{1,0}`, or several, `(f32[2,3]{1,0}, bf16[4])`.
    """
    pattern = re.compile(r"\s*(?:ROOT )?%?\S+ = (.*?) (" + "|".join(COLLECTIVES) + r")(-start)?\(")
    found = []
    for match in filter(None, map(pattern.match, hlo.splitlines())):
        by_dtype: Counter[str] = Counter()
        for dtype, dims in re.findall(r"\b(\w+)\[([\d,]*)\]", match[1]):
            if dtype in BYTES:
                by_dtype[dtype] += BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))
        found.append({"op": match[2], "bytes": sum(by_dtype.values()), "dtypes": dict(by_dtype)})
    return found


def annotate(module: Any, arguments: list[dict[str, Any]], devices: int, ir: Any) -> None:
    """Annotate the module's parameters: how each is split over the devices, and whether it is donated. Its file says neither."""
    main = next(op for op in module.body.operations if ir.StringAttr(op.attributes["sym_name"]).value == "main")
    known = {entry["parameter"]: entry for entry in arguments}
    attributes = []
    for number, kind in enumerate(main.type.inputs):
        entry = known.get(number, {"rows": False, "donated": False})
        split = ",".join([str(devices)] + ["1"] * (ir.RankedTensorType(kind).rank - 1))
        sharding = f"{{devices=[{split}]<=[{devices}]}}" if entry["rows"] and devices > 1 else "{replicated}"
        own = {"mhlo.sharding": ir.StringAttr.get(sharding)}
        if entry["donated"]:
            own["jax.buffer_donor"] = ir.BoolAttr.get(True)
        attributes.append(ir.DictAttr.get(own))
    main.attributes["arg_attrs"] = ir.ArrayAttr.get(attributes)


def compile_options(xc: Any, devices: list[int]) -> Any:
    """Options that compile one program for all of these devices, its arguments split as annotated."""
    import numpy as np

    options = xc.CompileOptions()
    build = options.executable_build_options
    for each in (options, build):
        each.num_replicas, each.num_partitions = 1, len(devices)
    options.device_assignment = xc.DeviceAssignment.create(np.array([devices]))
    build.use_spmd_partitioning = True
    build.use_shardy_partitioner = False  # it ignores the shardings that torch_xla writes, without a word
    build.allow_spmd_sharding_propagation_to_output = [True]
    return options


def compile_module(job: dict[str, Any]) -> dict[str, Any]:
    """Compile, and describe the result; where it does not fit, the compiler's message."""
    import jax
    import libtpu
    from jax._src.interpreters import mlir as jax_mlir
    from jax._src.lib import xla_client as xc
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    if jax.__version__ != JAX_VERSION:
        return {"error": f"jax {jax.__version__} found, {JAX_VERSION} is needed"}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=job["topology"], chip_config_name="megacore")
    count = job["devices"]
    devices = list(topology.devices)[:count]
    if len(devices) != count:
        return {"error": f"topology {job['topology']} has {len(devices)} devices, {count} are needed"}
    options = compile_options(xc, [device.id for device in devices])
    with open(job["module"], "rb") as file:
        text = xc._xla.mlir.xla_computation_to_mlir_module(xc.XlaComputation(file.read()))
    with jax_mlir.make_ir_context() as context, ir.Location.unknown(context):
        module = ir.Module.parse(text)
        annotate(module, job["arguments"], count, ir)
        bytecode = BytesIO()
        module.operation.write_bytecode(bytecode)
        began = time.perf_counter()
        try:
            executable = devices[0].client.compile(bytecode.getvalue(), xc.DeviceList(tuple(devices)), options)
        except xc.XlaRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"out_of_memory": str(error), "seconds": time.perf_counter() - began}
    seconds = time.perf_counter() - began
    memory = executable.get_compiled_memory_stats()
    cost = executable.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    hlo = "\n".join(compiled.to_string() for compiled in executable.hlo_modules())
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    aliases = re.search(r"input_output_alias=\{(.*?)\}, \w+=", hlo.split("\n", 1)[0])
    return {
        "seconds": seconds,
        "devices": count,
        "device_kind": devices[0].device_kind,
        "libtpu": libtpu.__version__,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "collectives": collectives(hlo),
        "partitions": int(partitions[1]) if partitions else 1,
        "aliases": len(re.findall(r"-alias\)", aliases[0])) if aliases else 0,
        "donated": sum(entry["donated"] for entry in job["arguments"]),
        "float64_values": len(re.findall(r"\bf64\b|xf64>", text)),
    }


def main() -> None:
    """Compile JOB.json's module and write the result."""
    with open(sys.argv[1]) as file:
        job = json.load(file)
    # what libtpu must find to describe a TPU without looking for one; before jax is imported
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.pop("TPU_ACCELERATOR_TYPE", None)  # set, it aborts the process
    result = compile_module(job)
    with open(job["result"], "w") as file:
        json.dump(result, file)
    sys.stdout.flush()
    os._exit(0)  # libtpu may abort while Python takes it down


if __name__ == "__main__":
    main()
