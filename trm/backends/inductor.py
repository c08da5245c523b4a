"""Inductor, torch's compiler: its runtime, folders and settings, and a first start beside which other work goes on."""

import functools
import logging
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch._dynamo
import torch._functorch.config
import torch._inductor.config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.cpu_vec_isa import VecISA, pick_vec_isa
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from trm.backends import swiglu
from trm.backends.base import Fn, map_tensors
from trm.backends.machine import compiler
from trm.backends.native import NativeRuntime
from trm.config import HardwareConfig
from trm.errors import ConfigError

EMPTY_KERNEL = 'extern "C" void kernel() {}\n'
SPLITS = re.compile(r"""[ \t\r\n'"\\]""")  # characters that split a path in a command line, or change it

_compiled = functools.cache(functools.partial(torch.compile, fullgraph=True, dynamic=False))


class InductorRuntime(NativeRuntime):
    """torch on one device with the network's blocks compiled, which are nearly all of the work."""

    def __init__(self, hardware: HardwareConfig) -> None:
        super().__init__(hardware)
        _require_folders()
        torch._inductor.config.cpp.cxx = (None, compiler())  # as now, not as when torch was imported
        torch._dynamo.config.recompile_limit = 64  # each batch size and each network is compiled once more, on purpose
        # makes trm/backends/onednn.py's function part of the cache's key, backward included
        torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
        # part of the key of inductor's cache: kernels for two threads on the one core of a sweep's job would be 20 times slower
        torch._inductor.config.cpp.threads = torch.get_num_threads()
        if hardware.platform != "cpu":
            return
        VecISA.check_build = _takes_its_flags  # type: ignore[method-assign,assignment]
        pick_vec_isa()  # once, before there are two threads: it changes the flags while it asks for them
        compile_header()  # kernels need it first
        if swiglu.usable(dtype := getattr(torch, hardware.dtype)):

            def work() -> None:
                compile_header().join()
                swiglu.kernels(dtype)

            compile_beside("swiglu", work)
            self.swiglu = swiglu.swiglu

    def compile_block(self, function: Fn) -> Fn:
        """The function, compiled once a process: every run of the same sizes uses it again, whatever its T and n."""
        return cast(Fn, _compiled(function))

    def prepare(self, compiled: Callable[..., Any], *args: Any) -> None:
        """Call the function once, since inductor compiles at the first call. It gets copies, as it may change its arguments."""
        compiled(*map_tensors(torch.clone, args))

    def compile_count(self) -> int:
        """Graphs that torch's compiler has made in this process."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _takes_its_flags(vectors: VecISA, code: str) -> bool:
    """Whether the compiler takes the flags of these instructions. Inductor would build and load a library for each, in 3 to 4 s."""
    command = [get_cpp_compiler(), *vectors.build_arch_flags().split(), "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@functools.cache
def compile_header() -> threading.Thread:
    """Compile the header of all kernels in a thread, while data are read and steps traced: a third of a machine's first step."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache  # takes a second, which inductor then does not need

    return compile_beside("header", lambda: CppPythonBindingsCodeCache.load_pybinding([], EMPTY_KERNEL))


def compile_beside(name: str, work: Callable[[], object]) -> threading.Thread:
    """A thread in which `work` compiles what is needed later. Where it fails, that is compiled again, and the error reported."""
    from torch._inductor.exc import CppCompileError

    def run() -> None:
        try:
            work()
        except CppCompileError as error:
            logging.getLogger(__name__).debug("%s: %s", name, error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def _require_folders() -> None:
    """Raise ConfigError where inductor's folders break its commands: it would report that in a hundred lines at the first step."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        folder = Path(named or default_cache_dir())
    except (KeyError, OSError) as error:  # a container's user may have no name
        raise ConfigError(
            f"inductor finds no name for this user, so no folder to compile in ({error}): set TORCHINDUCTOR_CACHE_DIR to a folder"
        ) from error
    variable = "TORCHINDUCTOR_CACHE_DIR" if named else "TMPDIR"
    fix = "set TORCHINDUCTOR_CACHE_DIR to a folder like /var/tmp/inductor, or use hardware.backend=eager"
    if SPLITS.search(str(folder)):
        raise ConfigError(f"{variable}: inductor cannot compile in {folder}, with white space, a quote or a backslash in it: {fix}")
    libraries = Path(torch.__file__).parent
    if SPLITS.search(str(libraries)):
        raise ConfigError(
            f"torch is in {libraries}: inductor cannot link to a folder with white space, a quote or a backslash in its name: "
            "make setup in another folder, or use hardware.backend=eager or hardware=cpu_xla"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            flags = os.statvfs(folder).f_flag
    except OSError as error:
        raise ConfigError(f"{variable}: inductor cannot write to {folder} ({error.strerror}): {fix}") from error
    if flags & getattr(os, "ST_NOEXEC", 0):  # macOS does not tell
        raise ConfigError(f"{variable}: what inductor compiles in {folder} cannot be run there (mounted noexec): {fix}")
