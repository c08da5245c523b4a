"""Wrong input as it comes: overrides written by hand, values of any type, files cut, flipped, emptied, swapped or made up.

Everything is drawn from hypothesis, so that a failing case is printed, made smaller and repeated.
"""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from trm.config import Config, all_keys
from trm.config.groups import GROUPS

# ------------------------------------------------------------------------------------------------------------------- values

ODD_NUMBERS = [
    "0", "-1", "1", "2", "3", "7", "12", "1.5", "-0.0", "1e400", "-1e400", "1e-320", "nan", "inf", "-inf", "2147483647",
    "2147483648", "1e9", "1_000", "0x10", "99999999999999999999999999",
]  # fmt: skip
ODD_TEXTS = [
    *ODD_NUMBERS, "9" * 5000, "", " ", "''", '""', "null", "true", "off", "yes", "???", "''''", "'a b'", "'open", "[open",
    "{open", "a\\", "${foo}", "${oc.env:HOME}", "${oc.env:NO_SUCH_VARIABLE}", "${seed}", "${data}", "${.path}",
    "${..model}", "${", "\\${foo}", "${${seed}}", "${oc.create:{a:1}}", "${oc.decode:'[1'}", "${now:%Q}",
    "${hydra:run.dir}", "${trm_groups:}", "${trm_sweep_name:3}", "[]", "[1,2]", "[[a],b]", "[a,{b:c}]", "{}", "{a:1}",
    "{enabled:3}", "{lr:x}", "1,2", "range(1,3)", "glob(*)", "choice(a,b)", "sort(3,1)", "int(x)", "shuffle(1,2)",
    "tag(a,1)", "a=b", "=", "é", "数独", "\U0001f9e9", "\u202e", "\x1b[31m", "\udcff", "\x7f", "a\nb", "a\tb", "\\n", "../up",
    "/", ".", "..", "a/../b", "~", "-", "--", "none", "None", "*", "x" * 300, "/dev/null", "/proc/self/mem",
]  # fmt: skip


def leaves(node: type = Config, prefix: str = "") -> dict[str, "dataclasses.Field[Any]"]:
    """The schema's keys that hold a value, with their fields."""
    found = {}
    for item in dataclasses.fields(node):
        inside = isinstance(item.type, type) and dataclasses.is_dataclass(item.type)
        found |= leaves(item.type, f"{prefix}{item.name}.") if inside else {f"{prefix}{item.name}": item}
    return found


LEAVES = leaves()


def near(key: str) -> list[str]:
    """Values that are right for the key, or only just wrong: its choices and default, and what stands about its bounds."""
    item = LEAVES[key]
    values = [str(item.default), *item.metadata.get("choices", ())]
    for bound in ("low", "high", "above", "below"):
        limit = item.metadata.get(bound)
        values += [] if limit is None else [f"{limit + d:g}" for d in (-1, -1e-3, 0, 1e-3, 1)] + [str(int(limit))]
    return values


def values_for(key: str) -> st.SearchStrategy[str]:
    """What may be written after `key=`."""
    close = st.sampled_from(near(key)) if key in LEAVES else st.nothing()
    numbers = st.integers(0, 64).map(str) | st.integers().map(str) | st.floats().map(repr)
    return st.one_of(close, close, close, close, st.sampled_from(ODD_TEXTS), numbers, st.text(max_size=12))


# ---------------------------------------------------------------------------------------------------------------- overrides

HYDRA_KEYS = ["hydra.run.dir", "hydra.job.name", "hydra.mode", "hydra.sweeper.params", "hydra.verbose", "hydra.job.chdir"]
HYDRA_GROUPS = ["hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra"]
ODD_KEYS = [
    "", ".", "a", "model.", ".T", "model..T", "recursion.t", "T", "defaults", "schema", "_self_", "model@x", "a b", "é",
    "seed[0]", "tracking.tags[0]",
]  # fmt: skip
OPTIONS = [
    "tiny", "mlp", "t2_n2", "on", "off", "cpu", "v4_64", "none", "sudoku_4x4", "adamw", "study", "quick_test", "tn_sweep",
    "no_such", "sized", "../config", "_x",
]  # fmt: skip


@st.composite
def overrides_of_keys(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from([*all_keys(), *all_keys(), *all_keys(), *HYDRA_KEYS, *ODD_KEYS]))
    sign = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
    return f"{sign}{key}={draw(values_for(key))}"


def one_override() -> st.SearchStrategy[str]:
    """One argument as a user might type it: mostly KEY=VALUE of a key that exists."""
    group = st.sampled_from([*GROUPS, *HYDRA_GROUPS])
    option = st.sampled_from(OPTIONS) | st.sampled_from(ODD_TEXTS)
    choice = st.builds("{}{}={}".format, st.sampled_from(["", "", "+", "~"]), group, option)
    packaged = st.builds("{}@{}={}".format, group, st.sampled_from(["model", "", "_global_", "x.y", ":"]), option)
    bare = st.sampled_from([*all_keys(), *ODD_TEXTS]) | st.sampled_from(all_keys()).map("~{}".format) | st.text(max_size=8)
    keys = overrides_of_keys()
    return st.one_of(keys, keys, keys, keys, choice, choice, packaged, bare)


def several_overrides() -> st.SearchStrategy[list[str]]:
    """One to four overrides; sometimes the same twice."""
    some = st.lists(one_override(), min_size=1, max_size=3)
    close = st.sampled_from(sorted(LEAVES)).flatmap(lambda key: st.sampled_from(near(key)).map(f"{key}={{}}".format))
    return some | some | st.lists(close, min_size=1, max_size=3) | some.map(lambda given: [*given, given[0]])


# -------------------------------------------------------------------------------------------------------- values inside files

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(ODD_TEXTS) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested containers."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in [(*path, key), *places(value, (*path, key))]]


def with_changes(data: st.DataObject, tree: Any) -> Any:
    """The tree with one to three values replaced, removed or added."""
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        found = places(tree)
        if not found or data.draw(st.integers(0, 19), label="replace all") == 0:
            return data.draw(JUNK, label="instead")
        *above, last = data.draw(st.sampled_from(found), label="place")
        node = tree
        for key in above:
            node = node[key]
        kind = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]), label="how")
        if kind == "replace":
            node[last] = data.draw(JUNK, label="value")
        elif kind == "remove":
            del node[last]
        elif isinstance(node, dict):
            node[data.draw(st.sampled_from([*ODD_KEYS, *all_keys()]), label="key")] = data.draw(JUNK, label="value")
        else:
            node.append(data.draw(JUNK, label="value"))
    return tree


# --------------------------------------------------------------------------------------------------------------------- files

ODD_CONTENT = [
    b"", b"\n", b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 100_000, b'{"a":' * 100_000, b"a: &x [*x]", b"<<: 3",
    b"? [a]: b", b"!!python/object:os.system x", b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"PK\x03\x04" + bytes(60),
    b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x80\x04\x95", b"\x1f\x8b",
    b"%YAML 9.9\n---\n", b"a: b: c", b"\tkey: 1", b"- 1\n- 2\n", b"key: ${nothing}\n", b"key: ${oc.env:HOME}\n",
    b"---\na: 1\n---\nb: 2\n", bytes(100),
]  # fmt: skip


def spoil(data: st.DataObject, folder: Path, *names: str, most: int = 1) -> None:
    """Damage one file below the folder, or up to `most` (called as in `names` if given), as `data` draws it."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and (not names or p.name in names)]
    originals = {p: p.read_bytes() for p in sorted(files)}
    for file in data.draw(st.lists(st.sampled_from(list(originals)), min_size=1, max_size=most, unique=True), label="files"):
        _spoil_file(data, file, originals)


def _spoil_file(data: st.DataObject, file: Path, originals: dict[Path, bytes]) -> None:
    kinds = ["cut", "flipped", "longer", "odd", "random", "removed", "a folder", "swapped", "unreadable link"]
    if file.suffix in (".json", ".yaml"):
        kinds += ["values"] * 8
    if file.suffix == ".npy":
        kinds += ["array"] * 8
    content = bytearray(originals[file])
    match data.draw(st.sampled_from(kinds), label="damage"):
        case "cut":
            del content[data.draw(st.integers(0, max(len(content) - 1, 0)), label="bytes") :]
        case "flipped":
            for _ in range(data.draw(st.integers(1, 8), label="flips")):
                content[data.draw(st.integers(0, len(content) - 1), label="at")] ^= data.draw(st.integers(1, 255), label="bits")
        case "longer":
            content += data.draw(st.binary(min_size=1, max_size=200), label="more")
        case "odd":
            content = bytearray(data.draw(st.sampled_from(ODD_CONTENT), label="content"))
        case "random":
            content = bytearray(data.draw(st.binary(max_size=200), label="content"))
        case "removed":
            file.unlink()
            return
        case "a folder":
            file.unlink()
            file.mkdir()
            return
        case "unreadable link":
            file.unlink()
            file.symlink_to(data.draw(st.sampled_from([file.name, "/nowhere"]), label="target"))
            return
        case "swapped":
            content = bytearray(originals[data.draw(st.sampled_from(list(originals)), label="with")])
        case "values" if file.suffix == ".json":
            content = bytearray(json.dumps(with_changes(data, json.loads(content))).encode())
        case "values":
            changed = with_changes(data, yaml.safe_load(bytes(content)))
            content = bytearray(yaml.safe_dump(changed, allow_unicode=True).encode(errors="surrogateescape"))
        case "array":
            content = bytearray(npy(other_array(data, np.load(io.BytesIO(content)))))
    file.write_bytes(content)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """The array as an npy file; pickled where it holds objects."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def other_array(data: st.DataObject, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A whole array that is not the one that belongs there, or only just."""
    kinds = ["dtype", "shape", "value", "order", "rows", "objects", "fields"]
    match data.draw(st.sampled_from(kinds), label="array"):
        case "dtype":
            return array.astype(
                data.draw(st.sampled_from(["i8", ">i4", "u8", "i1", "f4", "c8", "?", "S3", "U2", "M8[s]"]), label="dtype")
            )
        case "shape":
            shapes = [(-1,), (1, *array.shape), (*array.shape, 1), (0, *array.shape[1:]), ()]
            shape = data.draw(st.sampled_from(shapes), label="shape")
            return array.reshape(shape) if -1 in shape or 1 in shape else np.zeros(shape, array.dtype)
        case "value":
            dtype = data.draw(st.sampled_from([np.int64, np.uint64, array.dtype]), label="dtype")
            limits = np.iinfo(dtype)
            changed = array.astype(dtype)
            value = data.draw(st.sampled_from([0, 1, 2, 6, 7, 255, limits.min, limits.max]), label="value")
            changed.flat[data.draw(st.integers(0, array.size - 1), label="at")] = min(value, limits.max)
            return changed
        case "order":
            return np.asfortranarray(array)[::-1]
        case "rows":
            return np.concatenate([array, array])[: data.draw(st.integers(0, 2 * len(array)), label="rows")]
        case "objects":
            return np.array([None, "text", 3], dtype=object)
        case _:
            return np.zeros(len(array), dtype=[("a", "i4"), ("b", "f8")])


def copy_of(original: Path, folder: Path) -> Path:
    """A copy of a folder to be spoiled, in `folder`."""
    copy = folder / original.name
    shutil.copytree(original, copy, symlinks=True)
    return copy


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: the bytes of files, the targets of links, and folders."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = f"-> {path.readlink()}" if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
    return found
