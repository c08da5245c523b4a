"""The compiled function of trm/backends/xla.py."""

import collections
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import refused
from torch._inductor.cpu_vec_isa import VecAVX2, VecISA

from trm.backends import inductor, machine, start
from trm.backends.xla import XlaRuntime
from trm.config import HardwareConfig
from trm.errors import ConfigError


@pytest.fixture(autouse=True)
def nothing_compiled_beside(monkeypatch):
    """What inductor compiles in threads of its own takes seconds, and no test here looks at it."""
    monkeypatch.setattr(inductor, "compile_beside", lambda name, work: None)


@pytest.fixture(scope="module")
def runtime():
    return start(HardwareConfig(name="cpu"))


def test_donated_tensors_are_gone_and_the_others_stay(runtime):
    state, kept = runtime.replicate((torch.ones(4), torch.full((4,), 2.0)))
    step = runtime.compile(lambda state, kept: state + kept, donate=0)
    after = step(state, kept)
    assert runtime.fetch(step(after, kept)).tolist() == [5.0] * 4
    assert runtime.fetch(kept).tolist() == [2.0] * 4
    with pytest.raises(RuntimeError):
        runtime.fetch(state)


def test_what_is_prepared_with_arguments_leaves_them_to_other_programs(runtime):
    step, other = runtime.compile(lambda state: state + 1, donate=0), runtime.compile(lambda state: state * 2)
    state = runtime.replicate(torch.ones(4))
    runtime.prepare(step, state)
    assert [each.tolist() for each in runtime.fetch((other(state), state))] == [[2.0] * 4, [1.0] * 4]
    assert runtime.fetch(step(state)).tolist() == [2.0] * 4
    with pytest.raises(RuntimeError):
        runtime.fetch(state)


@pytest.mark.parametrize("donate", [None, 0])
def test_results_may_be_arguments(runtime, donate):
    """As of a step that trains a part of its state."""

    def step(state, other):
        changed = state["a"] + other
        return {"kept": state["b"], "changed": changed, "again": changed, "none": None, "detached": state["c"].detach()}, other

    compiled = runtime.compile(step, donate=donate)
    for _ in range(2):
        args = runtime.replicate(({name: torch.full((2,), ord(name)) for name in "abc"}, torch.ones(2)))
        state, other = runtime.fetch(compiled(*args))
        assert {name: value[0].item() for name, value in state.items() if name != "none"} == {
            "kept": 98, "changed": 98, "again": 98, "detached": 99
        }  # fmt: skip
        assert (state["none"], other.tolist()) == (None, [1, 1])
    kept = runtime.compile(lambda x: x)
    assert runtime.fetch(kept(args[1])).tolist() == [1, 1]


def test_other_shapes_compile_again_with_a_warning_that_names_them(runtime, monkeypatch):
    told = []
    monkeypatch.setattr(logging.getLogger("trm.backends.xla"), "warning", lambda text, *args: told.append(text % args))
    double = runtime.compile(lambda x, y: x * 2 + y)
    y = runtime.replicate(torch.tensor(0.0))
    double(runtime.replicate(torch.ones(3)), y)
    before = runtime.compile_count()
    double(runtime.replicate(torch.zeros(3)), y)
    assert (runtime.compile_count(), told) == (before, [])
    assert runtime.fetch(double(runtime.replicate(torch.ones(5)), y)).tolist() == [2.0] * 5
    assert told == ["compiling again: tensor 0: torch.float32 [3] became torch.float32 [5]"]
    line = re.fullmatch(
        r"compiled (\d+) \([\d.]+ s\), executed (\d+) \(.+ s\), sent to the devices (\d+) \(.+ s\), fetched (\d+) \(.+ s\), "
        r"recompiled for other shapes (\d+)",
        runtime.metrics_line(),
    )
    assert line[5] == "1"
    assert int(line[1]) >= 2  # compiled
    assert all(int(count) >= 1 for count in line.groups()[:4])


class TwoHosts(XlaRuntime):
    """What torch_xla does with rows of two hosts: each host's go to its own devices, in the order that these have in the mesh."""

    process_count, process_index, num_devices = 2, 1, 4

    def __init__(self, host_of_device):
        self.host_of_device, self._mesh = host_of_device, [0, 1, 2, 3]
        self._spmd = SimpleNamespace(Mesh=lambda ids, shape, names: list(ids))

    def _shard(self, own):
        assert own.tolist() == [2, 3]
        left = [iter([0, 1]), iter(own)]
        return torch.tensor([next(left[self.host_of_device[device]]) for device in self._mesh])

    def fetch(self, tree):
        return tree


@pytest.mark.parametrize(
    ("host_of_device", "mesh"), [([0, 0, 1, 1], [0, 1, 2, 3]), ([0, 1, 0, 1], [0, 2, 1, 3]), ([1, 1, 0, 0], [2, 3, 0, 1])]
)
def test_the_mesh_is_in_the_order_of_the_processes(monkeypatch, host_of_device, mesh):
    runtime = TwoHosts(host_of_device)
    runtime._order_mesh()
    assert runtime._mesh == mesh
    monkeypatch.setattr(runtime, "fetch", lambda rows: rows.flip(0))
    with pytest.raises(ConfigError, match="rows 0 to 3, one sent to each device, come back as"):
        runtime._order_mesh()


@pytest.mark.long
def test_threads_that_send_batches_and_traces_do_not_get_into_each_others_way(runtime):
    """A trace first runs all that waits for the devices: tensors that another thread is sending must not be among it."""
    import torch_xla

    errors, done = [], threading.Event()

    def send():
        held = collections.deque(maxlen=3)
        while not done.is_set():
            try:
                held.append(runtime.shard_batch({name: np.ones((64, 81), dtype=np.int32) for name in "abcdef"}))
            except RuntimeError as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20_000):  # failed within a few thousand when shard_batch left the sending to the next use of the devices
            torch_xla.sync()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_inductor_s_kernels_are_for_as_many_threads_as_the_process_has():
    """Its cache is shared by all processes of a machine: kernels for two threads stall where a job has one core."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            start(HardwareConfig(name="cpu", backend="inductor"))
            assert torch._inductor.config.cpp.threads == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("compiler", "known"), [("true", True), ("false", False)])
def test_vectors_are_those_whose_flags_the_compiler_takes(monkeypatch, compiler, known):
    """Without building and loading a library for each, which takes seconds."""
    start(HardwareConfig(name="cpu", backend="inductor"))
    assert VecISA.check_build is inductor._takes_its_flags
    given = []
    monkeypatch.setattr(inductor, "get_cpp_compiler", lambda: compiler)
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: given.append(command) or run(command, **options))
    assert VecAVX2().check_build("") == known
    assert {"-mavx2", "-mfma"} <= set(given[0])


@pytest.mark.parametrize("letter", [" ", "'", '"', "\\", "\n", "\t"])
@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "TMPDIR"])
def test_folders_that_inductor_s_commands_break_on_are_refused(monkeypatch, tmp_path, variable, letter):
    folder = tmp_path / f"a{letter}b"
    folder.mkdir()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv(variable, str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    refused(start, HardwareConfig(name="cpu", backend="inductor"), f"{variable}: inductor cannot compile in ")


def test_folders_that_inductor_cannot_use_are_refused(monkeypatch, tmp_path):
    hardware = HardwareConfig(name="cpu", backend="inductor")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "in"):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        with pytest.raises(ConfigError, match="inductor cannot write to"):
            start(hardware)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "a,b$c;é" / "new"))
    start(hardware)
    flags = os.statvfs(tmp_path)
    noexec = os.statvfs_result([*flags[:8], flags.f_flag | os.ST_NOEXEC, flags[9]])
    monkeypatch.setattr("os.statvfs", lambda path: noexec)
    with pytest.raises(ConfigError, match="cannot be run there"):
        start(hardware)

    monkeypatch.delattr(os, "ST_NOEXEC")  # as on macOS, which does not tell
    start(hardware)

    def nobody():
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr("getpass.getuser", nobody)
    with pytest.raises(ConfigError, match="no name for this user"):
        start(hardware)
    start(HardwareConfig(name="cpu", backend="eager"))


def test_torch_in_a_folder_that_inductor_cannot_link_to_is_refused(monkeypatch):
    monkeypatch.setattr("torch.__file__", "/my venv/torch/__init__.py")
    with pytest.raises(ConfigError, match="torch is in /my venv/torch"):
        start(HardwareConfig(name="cpu", backend="inductor"))


@pytest.mark.long
def test_the_header_of_all_kernels_is_compiled_once_in_a_cache(tmp_path):
    """While the first step is traced; it is the file that inductor itself would make, so that no kernel makes another."""
    script = """
        import torch
        from trm.backends import inductor, machine, start
        from trm.config import HardwareConfig

        runtime = start(HardwareConfig(name="cpu", backend="inductor"))
        inductor.compile_header().join()
        runtime.compile_block(lambda x: x.sin() + 1)(torch.ones(100))
        """
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"} | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment, check=True)
    assert len(list(tmp_path.rglob("*.gch"))) == 1


HARDWARE = {
    "xla": HardwareConfig(name="cpu_xla"),
    "eager": HardwareConfig(name="cpu", backend="eager"),
    "cuda": HardwareConfig(name="gpu", backend="inductor", platform="cuda"),
}


@pytest.mark.parametrize(
    ("name", "value", "who"),
    [
        ("XLA_USE_BF16", "1", "xla"),
        ("XLA_DOWNCAST_BF16", "1", "xla"),
        ("XLA_DOWNCAST_FP16", "true", "xla"),
        ("XLA_USE_32BIT_LONG", "2", "xla"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16", "eager"),
        ("DNNL_DEFAULT_FPMATH_MODE", "any", "eager"),
        ("NVIDIA_TF32_OVERRIDE", "1", "cuda"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "cuda"),
    ],
)
def test_variables_that_say_otherwise_than_the_settings_are_refused(monkeypatch, name, value, who):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}={value} in the environment .*: unset it"):
        start(HARDWARE[who])
    for other in HARDWARE.keys() - {who}:
        machine.require_machine(HARDWARE[other])  # which does not read it
    monkeypatch.setenv(name, "STRICT" if "FPMATH" in name else "0")
    machine.require_machine(HARDWARE[who])


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("XLA_FLAGS", "xla"),
        ("LIBTPU_INIT_ARGS", "xla"),
        ("ATEN_CPU_CAPABILITY", "eager"),
        ("ONEDNN_MAX_CPU_ISA", "eager"),
        ("MKL_CBWR", "eager"),
        ("CUBLAS_WORKSPACE_CONFIG", "cuda"),
        ("TORCHINDUCTOR_CPP_ENABLE_UNSAFE_MATH_OPT_FLAG", "eager"),
        ("TORCHINDUCTOR_USE_FAST_MATH", "cuda"),
    ],
)
def test_variables_that_change_last_bits_are_recorded(monkeypatch, name, who):
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "MKL_NUM_THREADS"):  # which change none
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv(name, "x")
    for kind, hardware in HARDWARE.items():
        found = machine.surroundings(hardware)
        assert found.get(name) == ("x" if kind == who or (name.startswith("TORCHINDUCTOR") and kind != "xla") else None)
        assert ("threads" in found) == (kind != "cuda")
        assert not {"TORCHINDUCTOR_CACHE_DIR", "MKL_NUM_THREADS"} & found.keys()


@pytest.mark.parametrize("given", ["ccache g++", "g++ -O2", "/no/such/g++", "~/bin/g++", "/my tools/g++"])
def test_a_compiler_variable_that_inductor_cannot_start_is_named(monkeypatch, given):
    monkeypatch.setenv("CXX", given)
    refused(start, HardwareConfig(name="cpu", backend="inductor"), f"CXX={given} in the environment")


@pytest.mark.parametrize("given", ["", "g++", shutil.which("g++")])
def test_the_compiler_is_the_one_that_the_variable_names_now(monkeypatch, given):
    monkeypatch.setenv("CXX", given)
    start(HardwareConfig(name="cpu", backend="inductor"))
    assert torch._inductor.config.cpp.cxx == (None, given or "g++")


def test_how_long_threads_wait_busily_is_said_before_torch_loads_unless_the_environment_says_it():
    for given, count in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")):
        bare = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
        code = "import os, sys, trm; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
        assert subprocess.check_output([sys.executable, "-c", code], env=bare, text=True).split() == [count, "False"]
