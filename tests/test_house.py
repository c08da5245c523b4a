"""The rules of the house, read from the imports of every module; docs/explanation/architecture.md says why."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {"train", "evaluate", "solve", "build_data", "interop", "doctor", "dashboard", "bench", "playground"}
FLAT = COMMANDS | {"api", "cli", "errors", "__init__"}
TOOLS = {"bench", "plan", "doctor", "report", "dashboard"}
# The folders in their order, with what each may import of the project beside itself, all of it above its own line: arrows run one
# way. What settings name is imported by its name (a variant, an optimizer, a task, a backend) and registers itself below.
MAY = {
    "errors": set(),
    "ground": {"errors"},
    "config": {"errors"},
    "backends": {"config", "errors", "ground"},
    "core": {"config", "errors", "ground"},
    "tasks": {"config", "errors", "ground"},
    "cli": {"config", "errors", "ground", "tasks"},
    "data": {"config", "errors", "ground", "tasks"},
    "inference": {"backends", "config", "core", "data", "errors", "ground", "tasks"},
    "show": {"config", "core", "errors", "inference", "tasks"},
    "tracking": {"config", "core", "errors", "ground", "inference", "show", "tasks"},
    "run": {"backends", "cli", "config", "core", "data", "errors", "ground", "inference", "tasks", "tracking"},
    "study": {"cli", "config", "data", "errors", "ground", "run", "show", "tasks", "tracking"},
    "hydra_plugins": {"study"},
    "report": {"cli", "config", "data", "errors", "ground", "inference", "run", "show", "tasks", "tracking"},
    "plan": {"backends", "cli", "config", "core", "data", "errors", "ground", "run", "show", "study", "tasks"},
}
ORDER = list(MAY)
TORCH_XLA = "backends.xla"
FILES = sorted([*ROOT.glob("trm/**/*.py"), *ROOT.glob("bench/*.py"), *ROOT.glob("hydra_plugins/**/*.py")])


def name_of(path):
    """A module's dotted name; "trm." is left out."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("trm", "__init__")) or "__init__"


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path):
    """(line, imported module) of every import, also those inside functions and by import_module."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import hides what it names"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from ((node.lineno, word.value) for word in node.args if isinstance(word, ast.Constant))


@functools.cache
def own_imports(path):
    """The project's modules among them, "trm." left out, those of the same folder left out."""
    found = []
    for line, module in imports_of(path):
        place, inside = ROOT / module.replace(".", "/"), module.removeprefix("trm.")
        if inside != module and (place.with_suffix(".py").exists() or place.is_dir()) and top(inside) != top(name_of(path)):
            found.append((line, inside))
    return found


def top(module):
    return module.partition(".")[0]


def broken(rule):
    """The lines that break a rule, as FILE:LINE imports MODULE."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports trm.{module}"
        for path in FILES
        for line, module in own_imports(path)
        if rule(path, name_of(path), module)
    ]


def test_what_lies_flat_is_a_command():
    assert {path.stem for path in (ROOT / "trm").glob("*.py")} == FLAT


def test_each_folder_has_a_place_in_the_order_and_imports_what_lies_above_it():
    folders = {path.name for path in (ROOT / "trm").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(MAY) - FLAT - {"hydra_plugins"}
    assert [(folder, each) for folder in ORDER for each in MAY[folder] if ORDER.index(each) >= ORDER.index(folder)] == []


def test_each_folder_imports_what_it_may():
    assert broken(lambda path, name, module: top(name) in MAY and top(module) not in MAY[top(name)]) == []


def test_nothing_but_tests_imports_the_training_command():
    assert broken(lambda path, name, module: module == "train") == []


def test_tools_import_no_command_and_are_imported_by_none():
    def rule(path, name, module):
        importer, imported = top(name), top(module)
        to_command = importer in TOOLS and imported in COMMANDS - TOOLS
        to_tool = imported in TOOLS and path.relative_to(ROOT).parts[0] != "bench" and importer not in (imported, "api")
        return to_command or to_tool

    assert broken(rule) == []


def test_tracking_cli_and_train_know_nothing_of_the_study():
    assert broken(lambda path, name, module: top(name) in ("tracking", "cli", "train") and module.startswith("study")) == []


def test_one_module_imports_torch_xla():
    found = {name_of(path) for path in FILES for _, module in imports_of(path) if top(module) == "torch_xla"}
    assert found <= {TORCH_XLA, "plan.aot"}


def test_nothing_is_compiled_when_the_network_is_imported():
    for path in ROOT.glob("trm/core/*.py"):
        assert "torch.compile(" not in path.read_text(), path


def test_a_module_says_what_it_is():
    assert [path for path in FILES if path.name != "__init__.py" and not ast.get_docstring(tree_of(path))] == []


def test_one_kind_of_puzzle_is_named_in_its_own_folder_and_among_the_papers_values_alone():
    for name in ("sudoku", "maze"):
        own = ROOT / "trm" / "tasks" / name
        found = {path for path in ROOT.glob("trm/**/*.*") if own not in path.parents and path.suffix in (".py", ".js", ".html")}
        named = {path.relative_to(ROOT).as_posix() for path in found if name in path.read_text(encoding="utf-8").lower()}
        assert named <= {"trm/config/paper.py"}
