"""Wrong input of every kind: it runs, or it is refused in one line and exit code 2; no traceback, no hang, nothing half-written.

TRM_FAULT_CASES=N is the number of cases over all tests (default 200; a night's `make test-faults`: 2000), TRM_FAULT_SEED what
they are drawn from: the same numbers give the same cases.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from report_fixtures import config, write_grid, write_run
from running import TINY, command, environment
from safetensors.torch import load, save
from spoiling import JUNK, ODD_TEXTS, contents, copy_of, one_override, several_overrides, spoil, with_changes

from trm import interop, solve
from trm.cli import compose
from trm.config import IGNORE_LABEL, from_plain, groups, to_plain
from trm.config.refusals import one_line
from trm.core.architecture import architecture
from trm.core.initial import init_buffers, init_puzzle_embedding, init_weights, weight_shapes
from trm.data.build import build_dataset, ensure_dataset
from trm.data.format import load_dataset
from trm.data.loader import EvalLoader, TrainLoader
from trm.errors import UserError
from trm.interop import ModelTensors, write_reference_file
from trm.report import plots
from trm.report.__main__ import main as report
from trm.run.saved import open_run
from trm.show.think import think
from trm.tasks.sudoku.task import SudokuTask

CASES = int(os.environ.get("TRM_FAULT_CASES", "200"))
SEED = int(os.environ.get("TRM_FAULT_SEED", "0"))
HANG_S = 120  # of what takes a second; the machine may be busy
TRIED: Counter[str] = Counter()
ACCEPTED: Counter[str] = Counter()
SMALL = ["data=sudoku_4x4", "model=tiny", "recursion=t2_n2", "recursion.n_sup=4", "data.num_puzzles=24", "data.num_test_puzzles=16"]
SIZES = {"seq_len": 16, "vocab_size": 6, "num_puzzle_identifiers": 1}

# by a thread, since the alarm of `tried` is what a hang should meet first
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300 + 2 * CASES, method="thread"),
    pytest.mark.usefixtures("one_thread"),
]


def cases(percent, most=None):
    """So many of the cases: `percent` of CASES, up to `most`."""
    number = max(1, min(CASES * percent // 100, most or CASES))
    chosen = settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    return lambda test: chosen(seed(SEED)(test))


@dataclass
class Outcome:
    result: Any = None
    refusal: str | None = None


@contextlib.contextmanager
def at_most(seconds):
    def ring(*_):
        raise AssertionError(f"hangs: it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def this_test():
    return os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0]


def tried(function, *arguments):
    """What comes of a call: its result, or the one line with which it is refused. Anything else is a traceback, and raised."""
    TRIED[this_test()] += 1
    try:
        with at_most(HANG_S), contextlib.redirect_stdout(io.StringIO()) as out:
            result = function(*arguments) or out.getvalue()
    except UserError as error:
        refusal = error
    else:
        ACCEPTED[this_test()] += 1
        return Outcome(result)
    line = one_line(refusal)
    assert line.strip(), "refused without a word"
    assert line.isprintable(), f"more than one plain line: {line!r}"
    assert line == str(refusal), f"not one plain line where it is raised: {str(refusal)!r}"
    return Outcome(refusal=line)


@contextlib.contextmanager
def scratch():
    """An empty folder for one case."""
    with tempfile.TemporaryDirectory(prefix="trm-bad-input-") as name:
        yield Path(name)


@pytest.fixture(scope="module", autouse=True)
def facts():
    yield
    print("\n" + json.dumps({"cases": TRIED.total(), "accepted": ACCEPTED.total(), "tried": TRIED, "of_these_accepted": ACCEPTED}))


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Away from the checkout, in a folder in which nothing may appear."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("nothing_here")
    os.chdir(folder)
    yield
    os.chdir(before)
    assert not contents(folder)


@pytest.fixture(scope="module")
def intact():
    """A function that notes a folder, which must be as it was when the tests are done."""
    noted = {}
    yield lambda folder: noted.setdefault(folder, contents(folder)) and folder
    for folder, before in noted.items():
        assert contents(folder) == before


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, intact):
    """A dataset without and one with stored variants, in one folder, and their settings."""
    folder = tmp_path_factory.mktemp("datasets")
    found = {}
    for num_aug in (0, 2):
        cfg = compose([*SMALL, f"data.num_aug={num_aug}", f"data.path={folder}/aug{num_aug}"])
        build_dataset(cfg.data)
        found[intact(Path(cfg.data.path))] = cfg.data
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory, intact):
    """A folder with a checkpoint file of the released code, of the model of SMALL."""
    cfg = compose([*SMALL, "run_name=r"])
    arch = architecture(cfg, **SIZES)
    folder = tmp_path_factory.mktemp("reference")
    weights = {name: tensor + 0.01 for name, tensor in init_weights(arch, 1).items()}
    write_reference_file(folder / "model.pt", ModelTensors(weights, init_buffers(arch, 1), init_puzzle_embedding(arch)), arch)
    return intact(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, reference, datasets, intact):
    """A run folder that evaluate and solve open."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        interop.main(["import", str(reference / "model.pt"), str(run_dir), *SMALL, f"data.path={next(iter(datasets))}"])
    return intact(run_dir)


# ----------------------------------------------------------------------------------------------------------------- settings


def usable(cfg):
    """Settings that were accepted can be written down, read again, and made into a model's shapes."""
    with scratch() as folder:
        OmegaConf.save(OmegaConf.create(to_plain(cfg)), folder / "config.yaml")
        again = from_plain(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False), "config.yaml")
    assert again == cfg
    json.dumps(to_plain(cfg), allow_nan=False)
    assert all(min(shape) > 0 for shape in weight_shapes(architecture(cfg, **SIZES)).values())
    os.fsencode(cfg.run_name)


@cases(30)
@given(several_overrides())
def test_overrides(overrides):
    outcome = tried(compose, overrides)
    if outcome.refusal is None:
        usable(outcome.result)


@cases(8)
@given(st.data())
def test_config_files(data):
    """A file of conf/ is spoiled, or an experiment of one's own is wrong."""
    with scratch() as folder, pytest.MonkeyPatch.context() as patch:
        conf = copy_of(groups.CONF_DIR, folder)
        patch.setattr(groups, "CONF_DIR", conf)
        if data.draw(st.booleans(), label="own experiment"):
            wrong = with_changes(data, config() | {"defaults": ["_self_", {"override /model": "tiny"}]})
            text = yaml.safe_dump(wrong, allow_unicode=True).encode(errors="surrogateescape")
            (conf / "experiment" / "own.yaml").write_bytes(b"# @package _global_\n" + text)
            overrides = ["experiment=own"]
        else:
            overrides = data.draw(st.sampled_from([[], ["experiment=paper_hrm_like", "model=deep"], SMALL]), label="overrides")
            spoil(data, conf)
        before = contents(conf)
        outcome = tried(compose, overrides)
        if outcome.refusal is None:
            usable(outcome.result)
        assert contents(conf) == before


# -------------------------------------------------------------------------------------------------------------- checkpoints


def opened(run_dir, overrides):
    run = open_run(run_dir, overrides)
    if run.cfg.recursion.n_sup * run.cfg.recursion.T * run.cfg.recursion.n <= 500:
        steps = list(think(run.arch, run.eval_weights, run.buffers, run.puzzle_embedding, np.ones(run.arch.seq_len, np.int64)))
        assert len(steps) == run.cfg.recursion.n_sup
        assert steps[-1][-1].answer.shape == (run.arch.seq_len,)
    return run


@cases(8)
@given(st.data())
def test_overrides_of_a_saved_run(saved, data):
    outcome = tried(opened, saved, data.draw(several_overrides()))
    if outcome.refusal is None:
        usable(outcome.result.cfg)


def sign(checkpoint):
    """Make the checksums right again, as somebody does who makes up a checkpoint."""
    with contextlib.suppress(ValueError, RecursionError, OSError):
        body = json.loads((checkpoint / "meta.json").read_text())
        if isinstance(body, dict):
            body.pop("meta_sha256", None)
            body["state_sha256"] = hashlib.sha256((checkpoint / "state.safetensors").read_bytes()).hexdigest()
            body["meta_sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            (checkpoint / "meta.json").write_text(json.dumps(body))


def other_tensors(data, blob):
    tensors = load(blob)
    name = data.draw(st.sampled_from(sorted(tensors)), label="tensor")
    tensor = tensors.pop(name)
    match data.draw(st.sampled_from(["gone", "renamed", "shape", "dtype", "nan", "more"]), label="tensors"):
        case "renamed":
            tensors[data.draw(st.sampled_from([f"{name}x", "weights/", "", "x", "fixed/init.z_H"]), label="name")] = tensor
        case "shape":
            tensors[name] = data.draw(
                st.sampled_from([tensor[:0], tensor[None], tensor.flatten()[:3], tensor[..., :1]]), label="shape"
            )
        case "dtype":
            dtypes = [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
            tensors[name] = tensor.to(data.draw(st.sampled_from(dtypes), label="dtype"))
        case "nan":
            tensors[name] = torch.full_like(tensor, float("nan"))
        case "more":
            tensors |= {name: tensor, f"weights/{data.draw(st.text(max_size=5), label='name')}": tensor.clone()}
    return save({k: t.contiguous() for k, t in tensors.items()})


@cases(14)
@given(st.data())
def test_checkpoints(saved, data):
    with scratch() as folder:
        run_dir = copy_of(saved, folder)
        checkpoint = run_dir / "checkpoints" / "step_0"
        alone = data.draw(st.booleans(), label="without config.yaml")
        if alone:  # the settings then come from meta.json
            (run_dir / "config.yaml").unlink()
        if data.draw(st.integers(0, 3), label="tensors") == 0:
            state = checkpoint / "state.safetensors"
            state.write_bytes(other_tensors(data, state.read_bytes()))
        else:
            spoil(data, run_dir)
        if data.draw(st.booleans(), label="signed"):
            sign(checkpoint)
        before = contents(run_dir)
        outcome = tried(opened, run_dir, ["data.path=anywhere"] if alone else [])
        if outcome.refusal is None:
            usable(outcome.result.cfg)
        assert contents(run_dir) == before


# ----------------------------------------------------------------------------------------------------------------- datasets


def read(path, settings):
    """What training and evaluation do with a dataset, and what they may expect of it."""
    ensure_dataset(settings)
    for split in ("train", "test"):
        dataset = load_dataset(path, split, SudokuTask(2, 2))
        metadata = dataset.metadata
        for on_the_fly_aug in (0, 3):
            loader = TrainLoader(dataset, seed=0, global_batch_size=8, on_the_fly_aug=on_the_fly_aug, data_seed=0)
            for step in (0, 10**6):
                check_batch(loader.batch(step), metadata)
        seen = 0
        for batch in EvalLoader(dataset, global_batch_size=7):  # the last one is filled up
            check_batch(batch, metadata, rows=7)
            seen += 7
        assert seen >= dataset.num_rows


def check_batch(batch, metadata, rows=8):
    assert batch["inputs"].shape == batch["labels"].shape == (rows, metadata.seq_len)
    assert ((batch["inputs"] >= 0) & (batch["inputs"] < metadata.vocab_size)).all()
    real = batch["labels"][batch["labels"] != IGNORE_LABEL]
    assert ((real >= 0) & (real < metadata.vocab_size)).all()
    identifiers = batch["puzzle_identifiers"]
    assert ((identifiers >= 0) & (identifiers < metadata.num_puzzle_identifiers)).all()


@cases(18)
@given(st.data())
def test_datasets(datasets, data):
    original = data.draw(st.sampled_from(list(datasets)), label="dataset")
    with scratch() as folder:
        path = copy_of(original, folder)
        settings = compose([*SMALL, f"data.num_aug={datasets[original].num_aug}", f"data.path={path}"]).data
        spoil(data, path, most=2)
        before = contents(path)
        if data.draw(st.integers(0, 3), label="build") == 0:  # which finds it built already, or refuses it
            tried(lambda: str(build_dataset(settings)))
        else:
            tried(read, path, settings)
        assert contents(path) == before
        assert {p.name for p in folder.iterdir()} <= {path.name, f".{path.name}.lock"}


ROW = "0,{},{},0"
QUESTION, ANSWER = "1...|..1.|.1..|...1", "1234341221434321"


@st.composite
def csv_text(draw, *questions):
    """A csv file of these 4x4 puzzles, of which some lines may be wrong."""
    question = st.sampled_from(questions)
    right = st.builds(ROW.format, question, st.just(ANSWER))
    field = st.sampled_from([ANSWER, "1...", "", '"', '"a', "5" * 16, "é" * 16, "1" * 16, *ODD_TEXTS]) | st.text(max_size=20)
    wrong = st.lists(field, max_size=5).map(",".join) | st.builds(ROW.format, question, field) | field
    header = draw(
        st.sampled_from(["source,question,answer,rating"] * 6 + ["\ufeffsource,question,answer,rating", "", "a,b", "\x00"])
    )
    lines = draw(st.lists(right, min_size=1, max_size=3)) + draw(st.just([]) | st.lists(right | wrong, max_size=3))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\x0b"]))
    return end.join([header, *lines]) + draw(st.sampled_from(["", end]))


@cases(6)
@given(
    train=csv_text("1...34122143....", "....341221434321"), test=csv_text("1234............", "12343412214343.."), data=st.data()
)
def test_csv_files(train, test, data):
    with scratch() as folder:
        paths = {}
        for split, text in (("train", train), ("test", test)):
            paths[split] = folder / f"{split}.csv"
            paths[split].write_bytes(text.encode(errors="surrogatepass"))
        if data.draw(st.integers(0, 9), label="path") == 0:
            paths["test"] = data.draw(
                st.sampled_from([folder, folder / "none", paths["train"], paths["train"] / "x"]), label="path"
            )
        target = folder / "dataset"
        count = data.draw(st.sampled_from([1, 1, 1, 2, 10**9]), label="puzzles")
        box = ["data.box_rows=2", "data.box_cols=2", f"data.num_puzzles={count}", f"data.path={target}"]
        settings = compose([*box, f"data.train_csv={paths['train']}", f"data.test_csv={paths['test']}"]).data
        if tried(build_dataset, settings).refusal is None:
            load_dataset(target, "train")
        else:
            assert {p.name for p in folder.iterdir()} <= {"train.csv", "test.csv", ".dataset.lock"}


# ------------------------------------------------------------------------------------------------------------------ puzzles


@cases(5)
@given(st.data())
def test_puzzles(saved, data):
    cells = st.text("1234.0_", min_size=16, max_size=16) | st.text("1234.0_|-+ \n5A\u0661", min_size=10, max_size=24)
    held_out = st.builds("test:{}".format, st.sampled_from(["0", "15", "16", "-1", "1.0", "", "²", "٣", "9" * 5000]))
    puzzle = data.draw(cells | held_out | st.sampled_from(ODD_TEXTS) | st.text(max_size=30), label="puzzle")
    more = data.draw(st.lists(one_override(), max_size=1), label="more")
    outcome = tried(solve.main, [f"checkpoint={saved}", *more, puzzle])
    if outcome.refusal is None:
        assert "solution" in outcome.result


# ------------------------------------------------------------------------------------------------------------------- reports


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, intact):
    """A sweep with completed runs, a failed and a missing one."""
    folder = tmp_path_factory.mktemp("multirun") / "sweep"
    for i, (ema, exact) in enumerate([("on", 0.5), ("on", 0.6), ("off", 0.4)]):
        write_run(folder / str(i), config("data=sudoku_4x4", f"ema={ema}"), exact, seed=i % 2, experiment="quick_test")
    write_run(folder / "3", config("data=sudoku_4x4"), None, status="failed", reason="no memory")
    write_grid(folder, {str(i): ["ema=on", f"seed={i}"] for i in range(5)})
    return intact(folder)


@cases(6)
@given(st.data())
def test_reports(sweep, data):
    with scratch() as folder:
        runs, out = copy_of(sweep, folder), folder / "report"
        spoil(data, runs, most=2)
        group = data.draw(st.sampled_from([[], [], ["--group", "ema"], ["--group", data.draw(st.text(max_size=8))]]), label="group")
        with_pictures = data.draw(st.integers(0, 9), label="pictures") == 0  # they take a second
        before = contents(runs)
        with pytest.MonkeyPatch.context() as patch:
            if not with_pictures:
                patch.setattr(plots, "_curves", lambda *_: b"")
                patch.setattr(plots, "_bars", lambda *_: b"")
            outcome = tried(report, [str(runs), "--out", str(out), *group])
        assert contents(runs) == before
        if outcome.refusal is None:
            json.loads((out / "report.json").read_text())
        else:
            assert not out.exists()


# --------------------------------------------------------------------------------------------------- the released code's files


def made_up(data, path):
    """A file that torch reads and that is not what it should be."""
    tensors = torch.load(path, weights_only=True)
    name = data.draw(st.sampled_from(sorted(tensors)), label="tensor")
    tensor = tensors.pop(name)
    others = {
        "gone": {}, "a number": {name: 3}, "none": {name: None}, "number as name": {3: tensor}, "shape": {name: tensor[None]},
        "integers": {name: tensor.int()}, "complex": {name: tensor.cfloat()}, "nan": {name: tensor * float("nan")},
        "bool": {name: tensor.bool()}, "sparse": {name: tensor.to_sparse()}, "meta": {name: tensor.to("meta")},
        "half": {name: tensor.half()}, "more": {name: tensor, data.draw(st.text(max_size=5), label="name"): tensor},
        "view": {name: tensor.expand(2, *tensor.shape)[0]}, "grad": {name: tensor.requires_grad_()},
    }  # fmt: skip
    kind = data.draw(st.sampled_from([*sorted(others), "list", "junk", "empty"]), label="kind")
    match kind:
        case "list":
            return list(tensors.values())
        case "junk":
            return data.draw(JUNK, label="junk")
        case "empty":
            return {}
    return tensors | others[kind]


@cases(5)
@given(st.data())
def test_imports(reference, data):
    with scratch() as folder:
        copy = copy_of(reference, folder)
        file, run_dir = copy / "model.pt", folder / "run"
        if data.draw(st.booleans(), label="made up"):
            torch.save(made_up(data, file), file)
        else:
            spoil(data, copy)
        if data.draw(st.integers(0, 9), label="target") == 0:
            run_dir = data.draw(
                st.sampled_from([copy, file, file / "run", folder / "a" / "b", folder / ("x" * 300)]), label="target"
            )
        before = contents(folder)
        more = data.draw(st.sampled_from([[], [], [], ["model=attention"], ["data=sudoku_9x9"], ["seed=x"]]), label="more")
        if tried(interop.main, ["import", str(file), str(run_dir), *SMALL, f"data.path={folder}/none", *more]).refusal is None:
            opened(run_dir, [])
        else:
            assert contents(folder) == before


# ---------------------------------------------------------------------------------------------------------- the real commands


# Hydra would have made the run's folder by the time these are found wrong.
REFUSED_LATE = [
    "train.max_steps=-1", "run_name=../up", "run_name=/tmp/x", f"run_name={'x' * 300}", "model.num_heads=3", "optimizer.lr=nan",
    "hydra.verbose=3", "hydra.run.dir=/proc/x", "+model.mixr=mlp", "recursion.variant=none", "--foo",
]  # fmt: skip


def is_refused(overrides):
    try:
        compose(overrides)
    except UserError:
        return True
    return False


def can_be_typed(arguments):
    try:
        return all(b"\0" not in os.fsencode(a) for a in arguments)
    except UnicodeEncodeError:
        return False


@cases(6, most=60)
@given(st.data())
def test_commands(saved, sweep, reference, datasets, data):
    """Each command in a process of its own, in an empty folder in which a refused one leaves nothing."""
    with scratch() as folder, scratch() as spoiled:
        overrides = data.draw(several_overrides(), label="overrides")
        match data.draw(
            st.sampled_from(["cfg", "cfg", "train", "build_data", "evaluate", "solve", "report", "import"]), label="command"
        ):
            case "cfg":
                given = ["trm.train", "--cfg", "job", *overrides]
            case "train":  # only what is refused, since anything else may train for long
                late = data.draw(st.none() | st.sampled_from(REFUSED_LATE), label="late")
                given = ["trm.train", *TINY, *([late] if late else overrides)]
                assume(late or is_refused([*TINY, *overrides]))
            case "build_data":
                spoil(data, copy_of(next(iter(datasets)), spoiled))
                given = ["trm.build_data", *SMALL, f"data.path={spoiled}/aug0", overrides[0]]
            case "evaluate":
                spoil(data, copy_of(saved, spoiled), "config.yaml", "meta.json", "state.safetensors")
                given = ["trm.evaluate", f"checkpoint={spoiled}/run", "hardware.backend=eager"]
            case "solve":
                given = ["trm.solve", f"checkpoint={saved}", data.draw(st.sampled_from([QUESTION, *ODD_TEXTS]), label="puzzle")]
            case "report":
                spoil(data, copy_of(sweep, spoiled))
                given = ["trm.report", f"{spoiled}/sweep", "--out", "report"]
            case "import":
                spoil(data, copy_of(reference, spoiled))
                given = ["trm.interop", "import", f"{spoiled}/reference0/model.pt", "run", *SMALL]
        given = [a for a in given if not a.startswith("-") or a in ("--cfg", "--out", "--foo", "--", "-")]
        assume(can_be_typed(given))
        TRIED[this_test()] += 1
        before = contents(spoiled)
        done = subprocess.run(command(*given), cwd=folder, env=environment(), capture_output=True, timeout=2 * HANG_S, check=False)
        err = done.stderr.decode(errors="replace")
        assert done.returncode in (0, 2), f"{done.returncode}: {err}"
        assert "Traceback" not in err
        ACCEPTED[this_test()] += done.returncode == 0
        if done.returncode == 2:
            assert err.startswith("error: "), err
            assert len(err.splitlines()) == 1, err
            assert not contents(folder)
        assert contents(spoiled) == before
