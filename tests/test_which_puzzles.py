"""A number says which puzzles and settings it is of: whatever lies beside a run, whoever built its data."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from running import TINY, run, summary

from trm.cli import compose
from trm.config import flatten, matching, paper, to_plain
from trm.data.build import build_dataset, ensure_dataset
from trm.data.content import caveats, content_of
from trm.data.format import load_dataset
from trm.errors import DataError
from trm.inference.evaluator import EvalResult
from trm.report.runs import collect
from trm.report.variants import compare
from trm.run.checkpoint import find_checkpoints
from trm.run.record import Record
from trm.tasks.sudoku.settings import Settings
from trm.tasks.sudoku.task import SudokuTask
from trm.tracking.labels import labels

SUDOKU, NINE = SudokuTask(2, 2), SudokuTask(3, 3)
QUICK = [*TINY, "recursion.n_sup=1", "train.max_steps=3", "evaluate.max_puzzles=null", "train.eval_every_steps=null"]


def write_csv(path, questions, answers, task=SUDOKU):
    rows = [f"x,{task.text(q)},{task.text(a)},1" for q, a in zip(questions, answers, strict=True)]
    path.write_text("\n".join(["source,question,answer,rating", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """csv files: two training sets, two test sets."""
    folder = tmp_path_factory.mktemp("work")
    questions, answers = SUDOKU.generate(80, 0)
    for name, rows in {"train_a": slice(0, 24), "train_b": slice(24, 48), "test_a": slice(48, 64), "test_b": slice(64, 80)}.items():
        write_csv(folder / f"{name}.csv", questions[rows], answers[rows])
    return folder


def csvs(train, test, path, count=24):
    files = [f"data.train_csv={train}.csv", f"data.test_csv={test}.csv", f"data.path={path}"]
    return ["data.source=csv", f"data.num_puzzles={count}", "data.num_test_puzzles=null", *files]


def train(folder, name, *arguments, **options):
    return run(folder, "trm.train", *QUICK, f"run_name={name}", *arguments, **options)


def data_of(folder, train, test, path):
    """The data settings of these files, whose dataset is built."""
    data = compose([*QUICK, *csvs(folder / train, folder / test, folder / path), "run_name=x"]).data
    ensure_dataset(data)
    return data


@pytest.fixture(scope="module")
def runs(folder):
    """A run, and what it would leave elsewhere and on other puzzles: they agree in all settings but the seed."""
    train(folder, "aa", *csvs("train_a", "test_a", "data_aa"))
    runs = folder / "outputs"
    others = {"aa2": ("train_a", "test_a"), "ba": ("train_b", "test_a"), "ab": ("train_a", "test_b")}
    for seed, (name, files) in enumerate(others.items(), 1):
        copy = shutil.copytree(runs / "aa", runs / name, symlinks=True)
        (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("\nseed: 0", f"\nseed: {seed}"))
        content = content_of(data_of(folder, *files, f"data_{name}"))
        digests = {"train_digest": content.train_digest, "test_digest": content.test_digest}
        told = summary(copy)
        (copy / "summary.json").write_text(json.dumps(told | {"seed": seed, "data": told["data"] | digests}))
    return runs


# ------------------------------------------------------------------------------------------------------- 1: told apart by content


def test_runs_on_other_puzzles_are_other_variants_whatever_the_settings_say(runs):
    comparison = compare(collect([runs]))
    assert sorted(sorted(run.name for run in v.counted) for v in comparison.variants) == [["aa", "aa2"], ["ab"], ["ba"]]
    assert {re.sub("[0-9a-f]{8}", "#", v.label) for v in comparison.variants} == {
        "t2_n2", "training puzzles #", "test puzzles #"
    }  # fmt: skip
    pooled = compare(collect([runs]), ["recursion"])
    assert any("puzzles.test" in warning for warning in pooled.warnings)


def test_a_run_that_does_not_say_on_which_puzzles_is_taken_for_those_with_its_settings(runs, tmp_path):
    for name in ("aa", "aa2"):
        shutil.copytree(runs / name, tmp_path / name)
    told = summary(tmp_path / "aa2")
    del told["data"]
    (tmp_path / "aa2/summary.json").write_text(json.dumps(told))
    comparison = compare(collect([tmp_path]))
    assert [len(variant.counted) for variant in comparison.variants] == [2]


def test_dashboards_group_what_may_be_averaged_and_nothing_else():
    cfg = compose(["data=sudoku_4x4", "run_name=x"])
    data = {"train_digest": "a" * 16, "test_digest": "b" * 16, "test_puzzles": 20}
    first = labels(cfg, data)
    assert labels(replace(cfg, seed=7, run_name="y", data=replace(cfg.data, path="elsewhere")), data) == first
    others = [labels(cfg, data | {key: "c" * 16}) for key in ("train_digest", "test_digest")]
    others += [labels(replace(cfg, optimizer=replace(cfg.optimizer, weight_decay=0.5)), data)]  # which no word is for
    others += [labels(replace(cfg, train=replace(cfg.train, max_steps=steps)), data) for steps in (5, 6)]
    assert len({label.variant for label in [first, *others]}) == 6
    assert labels(compose(["experiment=paper_t3_n6"]), data).paper_exact_accuracy is None  # not on the paper's test puzzles


# ----------------------------------------------------------------------------------- 2: a checkpoint's own settings, digests, data


def last_line(done):
    return json.loads(done.stdout.splitlines()[-1])


def test_a_checkpoint_is_read_with_its_own_settings_whatever_lies_beside_it(folder, runs):
    own = last_line(run(folder, "trm.evaluate", "checkpoint=outputs/aa"))
    shutil.copytree(runs / "aa", runs / "twice", symlinks=True)
    other = ["recursion=t3_n6", "recursion.n_sup=2", "ema=off", "data.path=data_ab", "data.test_csv=test_b.csv"]
    train(folder, "twice", *csvs("train_a", "test_a", "data_aa"), *other, "train.resume=never")
    path = folder / "outputs/twice/config.yaml.1"
    path.write_text(re.sub(r"(?m)^  T: 2", "  T: 1", path.read_text()).replace("enabled: true", "enabled: false"))
    checkpoint = "checkpoint=outputs/twice/checkpoints.1/step_3"
    done = run(folder, "trm.evaluate", checkpoint)
    assert last_line(done) == own
    assert "recursion.T=1 in the file, 2 in the checkpoint" in done.stderr
    assert "EMA" in run(folder, "trm.interop", "export", checkpoint, "own.pt").stdout
    assert "after 1 supervision" in run(folder, "trm.solve", checkpoint, "test:0").stdout


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_taken(folder):
    train(folder, "harmed", "train.checkpoint_every_steps=1")
    file = folder / "outputs/harmed/checkpoints/step_3/state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    done = run(folder, "trm.evaluate", "checkpoint=outputs/harmed")
    assert last_line(done)["checkpoint_step"] == 2
    assert "step_3" in done.stderr
    refused = run(folder, "trm.evaluate", "checkpoint=outputs/harmed/checkpoints/step_3", check=2)
    assert "damaged" in refused.stderr


def test_imported_weights_keep_settings_without_names_and_paths(folder, runs):
    run(folder, "trm.interop", "export", "checkpoint=outputs/aa", "aa.pt")
    run(folder, "trm.interop", "import", "aa.pt", "outputs/imported", *QUICK, "data.path=data_aa", "data.num_puzzles=24")
    meta = (folder / "outputs/imported/checkpoints/step_0/meta.json").read_text()
    assert "data_aa" not in meta
    assert "imported" not in meta


def test_a_run_that_is_called_latest_is_found(tmp_path):
    for step in (1, 2):
        (tmp_path / f"latest/checkpoints/step_{step}").mkdir(parents=True)
        (tmp_path / f"latest/checkpoints/step_{step}/meta.json").touch()
    assert find_checkpoints(tmp_path / "latest")[0].name == "step_2"


# --------------------------------------------------------------------------------------------------------- 3: caveats are told


def test_each_finding_and_nothing_where_there_is_none(tmp_path):
    questions, answers = NINE.generate(16, 0)
    trained = (questions[:8], answers[:8])

    def found(test, train=trained):
        data = Settings(name="d", path=str(tmp_path / "d"), num_puzzles=len(train[0]))
        data.train_csv = str(write_csv(tmp_path / "train.csv", *train, task=NINE))
        data.test_csv = str(write_csv(tmp_path / "test.csv", *test, task=NINE))
        report = build_dataset(data)
        assert content_of(data).caveats == json.loads((report.path / "build.json").read_text())["caveats"]
        (report.path / "build.json").unlink()  # a folder of the released code says nothing, and the same is found
        again = content_of(data).caveats
        shutil.rmtree(report.path)
        assert all(caveat in str(report) for caveat in again)
        return again

    assert found((questions[8:], answers[8:])) == []
    turned = [grid.reshape(-1, 9, 9).transpose(0, 2, 1).reshape(-1, 81) for grid in (questions[:5], answers[:5])]
    [copies] = found([np.concatenate(pair) for pair in zip(turned, (questions[8:], answers[8:]), strict=True)])
    assert copies.startswith("5 of 13 test puzzles may be symmetric copies of a training puzzle")
    twice = [np.concatenate([part[8:], part[8:11]]) for part in (questions, answers)]
    assert found(twice) == ["3 of 11 test puzzles repeat an earlier one"]
    fewer = questions[8:].copy()
    for row in fewer[:4]:  # minimal puzzles: without a clue they have several solutions
        row[np.flatnonzero(row > 1)[0]] = 1
    assert found((fewer, answers[8:])) == ["4 of 8 test puzzles have several solutions, and only one of them counts as right"]
    assert "4 of 8 training puzzles have several" in found((questions[:8], answers[:8]), (fewer, answers[8:]))[0]


def test_a_folder_built_elsewhere_is_looked_at_as_well(tmp_path):
    data = compose(
        ["data=sudoku_4x4", "data.num_puzzles=20", "data.num_test_puzzles=10", f"data.path={tmp_path}/d", "run_name=x"]
    ).data
    build_dataset(data)
    (tmp_path / "d/build.json").unlink()
    for name in ("inputs", "labels"):
        rows = [np.load(tmp_path / f"d/{split}/all__{name}.npy") for split in ("train", "test")]
        rows[1][:3] = rows[0][:3]
        rows[1][4] = 2
        np.save(tmp_path / f"d/test/all__{name}.npy", rows[1])
    told = content_of(data).caveats
    assert told[0] == "3 of 10 test puzzles are also training puzzles"
    assert "1 of 10 test puzzles are not a 4x4 Sudoku with its solution" in told
    test = load_dataset(tmp_path / "d", "test", NINE)
    assert "but the settings say 9x9 Sudoku (" in caveats(NINE, None, test)[0]


def test_a_finding_is_told_wherever_the_number_is(folder, runs):
    first = (part[:16] for part in SUDOKU.generate(80, 0))
    others = (np.where(grids > 1, (grids - 1) % 4 + 2, grids).astype(np.uint8) for grids in first)  # the digits in another order
    write_csv(folder / "copies.csv", *others)
    done = train(folder, "leaks", *csvs("train_a", "copies", "data_copies"), "tracking=tensorboard")
    told = summary(folder / "outputs/leaks")
    [caveat] = told["data"]["caveats"]
    assert caveat.startswith("16 of 16 test puzzles may be symmetric copies of a training puzzle")
    assert any(caveat in warning for warning in told["warnings"])
    assert caveat in done.stdout
    assert caveat in (folder / "outputs/leaks/train.log").read_text()
    assert any(caveat.encode() in file.read_bytes() for file in (folder / "outputs/leaks/tensorboard").iterdir())
    assert caveat in run(folder, "trm.evaluate", "checkpoint=outputs/leaks").stdout
    report = run(folder, "trm.report", "outputs/leaks", "--out", "report").stdout
    assert caveat in report
    assert re.search(r"\d\.\d \(n=1\) !", report)
    assert caveat in (folder / "report/index.html").read_text()
    from trm.doctor import check_puzzles

    (check,) = check_puzzles(compose([*QUICK, *csvs(folder / "train_a", folder / "copies", folder / "data_copies"), "run_name=x"]))
    assert (check.level, caveat in str(check)) == ("warning", True)


# ------------------------------------------------------------------------------------------------------------ 4: wrong paths


def test_a_named_file_is_the_one_that_the_folder_was_built_from(folder, runs):
    for split in ("train", "test"):
        data = data_of(folder, "train_a", "test_a", "data_aa")
        with pytest.raises(DataError, match=rf"data\.{split}_csv=/typo\.csv does not exist.*leave data\.{split}_csv out"):
            ensure_dataset(replace(data, **{f"{split}_csv": "/typo.csv"}))
        with pytest.raises(DataError, match=r"sha256 [0-9a-f]{64}\) is not the file .*sha256 [0-9a-f]{64}\)"):
            ensure_dataset(replace(data, **{f"{split}_csv": str(folder / f"{split}_b.csv")}))
    done = train(folder, "typo", "data.source=csv", "data.num_puzzles=24", "data.num_test_puzzles=null", "data.path=data_aa",
                 "data.train_csv=/typo.csv", check=2)  # fmt: skip
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1


def test_a_run_is_opened_though_its_csv_files_are_gone(folder, runs):
    config = shutil.copytree(runs / "aa", runs / "gone", symlinks=True) / "config.yaml"
    assert config.read_text().count("_a.csv") == 2
    config.write_text(config.read_text().replace("_a.csv", "_gone.csv"))
    run(folder, "trm.evaluate", "checkpoint=outputs/gone")


# --------------------------------------------------------------------------------------------- 5: every digest is kept and compared


def test_other_test_puzzles_in_the_same_folder_are_refused_everywhere(folder):
    train(folder, "rebuilt", *csvs("train_a", "test_a", "data_rebuilt"))
    meta = json.loads((folder / "outputs/rebuilt/checkpoints/step_3/meta.json").read_text())
    content = summary(folder / "outputs/rebuilt")["data"]
    assert (meta["data_digest"], meta["test_digest"]) == (content["train_digest"], content["test_digest"])
    assert (meta["puzzles"], meta["caveats"]) == ({"train": 24, "test": 16}, content["caveats"])
    shutil.rmtree(folder / "data_rebuilt")
    run(folder, "trm.build_data", *QUICK, *csvs("train_a", "test_b", "data_rebuilt"))
    new = content_of(Settings(name="d", path=str(folder / "data_rebuilt"), box_rows=2, box_cols=2)).test_digest
    for command, arguments in (("trm.evaluate", []), ("trm.solve", ["test:0"])):
        refused = run(folder, command, "checkpoint=outputs/rebuilt", *arguments, check=2).stderr
        assert meta["test_digest"] in refused
        assert new in refused
    again = csvs("train_a", "test_b", "data_rebuilt")
    for more in ([], ["train.max_steps=6"]):  # a kept evaluation, and a resume
        refused = train(folder, "rebuilt", *again, *more, check=2).stderr
        assert f"holds other test puzzles: digest {meta['test_digest']} there, {new} here" in refused
    asked = run(folder, "trm.evaluate", "checkpoint=outputs/rebuilt", "data.path=data_rebuilt")
    assert "other test puzzles than the run's own" in asked.stdout
    run(folder, "trm.build_data", *QUICK, *csvs("train_b", "test_b", "data_bb"))
    other = run(folder, "trm.evaluate", "checkpoint=outputs/rebuilt", "data.path=data_bb")
    assert "they may be copies of puzzles that the run was trained on" in other.stdout


# ------------------------------------------------------------------------------------------- 6: what is recorded is what happened


def test_counts_are_those_of_the_folder(folder, tmp_path):
    """A folder in the released layout says nothing of settings: what it holds is recorded, compared, and resumed with."""
    made = ["data=sudoku_4x4", "data.num_puzzles=12", "data.num_test_puzzles=8", "data.num_aug=2", f"data.path={tmp_path}/released"]
    run(tmp_path, "trm.build_data", *made)
    (tmp_path / "released/build.json").unlink()
    arguments = [*QUICK, "run_name=elsewhere", f"data.path={tmp_path}/released"]
    done = run(tmp_path, "trm.train", *arguments)
    assert "data.num_puzzles=64, but" in done.stdout
    saved = (tmp_path / "outputs/elsewhere/config.yaml").read_text()
    for line in ("num_puzzles: 12", "num_test_puzzles: 8", "num_aug: 2"):
        assert f"  {line}\n" in saved
    meta = json.loads((tmp_path / "outputs/elsewhere/checkpoints/step_3/meta.json").read_text())
    assert [meta["config"]["data"][key] for key in ("num_puzzles", "num_test_puzzles", "num_aug")] == [12, 8, 2]
    [told] = collect([tmp_path / "outputs/elsewhere"])
    assert told.settings["data.num_puzzles"] == 12
    assert "nothing to train" in run(tmp_path, "trm.train", *arguments).stdout
    run(tmp_path, "trm.evaluate", "checkpoint=outputs/elsewhere")


def test_the_best_is_over_one_set_of_puzzles():
    """Evaluations over more or fewer puzzles, as a resumed run may ask for, are not compared with those before."""

    def result(accuracy, count):
        return EvalResult([{"exact_accuracy": accuracy, "count": count}], None)

    record = Record(step=1)
    record.evaluated(result(0.5, 4), result(0.5, 4))
    record.step = 2
    record.evaluated(result(0.4, 64), result(0.4, 64))
    assert (record.scores.best_exact_accuracy, record.scores.best_step, record.scores.best_puzzles) == (0.4, 2, 64)
    [warning] = record.warnings
    assert "used 4 test puzzles by exact, this one uses 64 test puzzles by exact" in warning


def test_the_papers_value_is_compared_on_as_many_test_puzzles_as_its_own():
    cfg = to_plain(compose(["experiment=paper_t3_n6"]))
    settings = flatten(cfg)
    assert matching.find(settings, paper.STEPS, paper.TEST_PUZZLES).comparable
    assert matching.find(settings, paper.STEPS, 10_000).unlike == ("test puzzles=10000 (paper: 422786)",)
