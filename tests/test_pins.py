"""The private names of other packages that this project uses: an upgrade that takes one away fails here, by its name.

A name is MODULE:ATTRIBUTE.PATH. What an instance alone has is looked for in the source of its class. jax's names (trm/plan/aot.py)
are left out: that module checks the version, and jax lies in another interpreter.
"""

import ast
import functools
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb_workspaces itself

PACKAGES = ("torch", "torch_xla", "hydra", "submitit", "hydra_plugins", "wandb", "wandb_workspaces")

NAMES = [
    "torch.distributed:_functional_collectives.all_reduce",
    "torch.distributed:_functional_collectives.wait_tensor",
    "torch.utils._pytree:TreeSpec",
    "torch.utils._pytree:tree_flatten",
    "torch.utils._pytree:tree_flatten_with_path",
    "torch.utils._pytree:tree_leaves",
    "torch.utils._pytree:tree_map",
    "torch.utils._pytree:tree_map_only",
    "torch.utils._pytree:tree_unflatten",
    "torch._subclasses:FakeTensorMode",
    "torch._dynamo:config.recompile_limit",
    "torch._dynamo.utils:counters",
    "torch._functorch.config:autograd_cache_allow_custom_autograd_functions",
    "torch._inductor.config:cpp.threads",
    "torch._inductor.cpp_builder:get_cpp_compiler",
    "torch._inductor.cpu_vec_isa:VecISA.build_arch_flags",
    "torch._inductor.cpu_vec_isa:VecISA.check_build",
    "torch._inductor.cpu_vec_isa:pick_vec_isa",
    "torch._inductor.codecache:CppCodeCache.load",
    "torch._inductor.codecache:CppPythonBindingsCodeCache.load_pybinding",
    "torch._inductor.exc:CppCompileError",
    "torch._inductor.runtime.cache_dir_utils:default_cache_dir",
    "torch:ops.mkldnn._linear_pointwise",
    "torch_xla:_XLAC._set_buffer_donation",
    "torch_xla:_XLAC._xla_get_cpu_tensors",
    "torch_xla:_XLAC._xla_get_tensor_id",
    "torch_xla.backends:set_mat_mul_precision",
    "torch_xla:_XLAC.lowering.LoweringContext",
    "torch_xla._dynamo.dynamo_bridge:extract_internal",
    "hydra._internal.callbacks:Callbacks",
    "hydra._internal.utils:get_args_parser",
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper",
    "hydra._internal.core_plugins.file_config_source:FileConfigSource",
    "hydra._internal.sources_registry:SourcesRegistry.instance",
    "hydra.core.utils:JobReturn._return_value",
    "omegaconf:BooleanNode._deepcopy_impl",
    "omegaconf:BooleanNode._validate_and_convert_impl",
    "hydra_plugins.hydra_submitit_launcher.config:BaseQueueConf",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher:BaseSubmititLauncher._EXECUTOR",
    "wandb.sdk.lib.service.service_connection:WandbApiFailedError",
    "wandb.sdk.mailbox:HandleAbandonedError",
    "wandb.sdk.mailbox:MailboxClosedError",
    "wandb_workspaces.workspaces.errors:SpecVersionError",
]
OF_INSTANCES = [
    "submitit.local.local:LocalJob._process",
    "wandb_workspaces.workspaces:Workspace._internal_name",
    "wandb_workspaces.workspaces:Workspace._spec",
    "wandb_workspaces.reports.v2:LinePlot._id",
]


def found(name):
    module, _, path = name.partition(":")
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there(name):
    found(name)


@pytest.mark.parametrize("name", OF_INSTANCES)
def test_its_instances_have_it(name):
    owner, _, attribute = name.rpartition(".")
    classes = inspect.getmro(found(owner))
    assert any(attribute in inspect.getsource(kind) for kind in classes if kind.__module__ not in ("builtins", "typing")), name


def private_imports():
    """MODULE:NAME of everything that a file takes from a module whose path says that it is private."""
    for file in [*ROOT.glob("trm/**/*.py"), *ROOT.glob("hydra_plugins/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
                for alias in node.names:
                    if any(part.startswith("_") for part in [*node.module.split("."), alias.name]):
                        yield f"{node.module}:{alias.name}"


def test_every_private_import_is_listed():
    listed = {name.replace(":", ".") for name in NAMES}
    for name in private_imports():
        dotted = name.replace(":", ".")
        assert any(entry == dotted or entry.startswith(f"{dotted}.") for entry in listed), f"{name}: add it to NAMES"
