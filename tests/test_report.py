"""Run folders to variants to files; the page in a browser is in test_report_page.py."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from report_fixtures import config, write_grid, write_run, write_tn_sweep
from running import refused, run
from sweeping import start, stopped

from trm.cli import compose
from trm.config import NUMBERS, flatten, matching, paper, role, to_plain, total_steps, way_keys
from trm.config.groups import CONF_DIR
from trm.errors import UserError
from trm.ground.folder import exclusive
from trm.report.__main__ import main
from trm.report.labels import show
from trm.report.output import terminal
from trm.report.runs import collect
from trm.report.variants import compare, estimate
from trm.show.files import write_files

PNG = b"\x89PNG\r\n\x1a\n"


def report(*folders: Path, group: list[str] | None = None):
    return compare(collect(list(folders)), group)


def by_label(comparison):
    return {variant.label: variant for variant in comparison.variants}


def only_run(folder: Path):
    (run,) = collect([folder])
    return run


@pytest.fixture(scope="module")
def tn_sweep(tmp_path_factory):
    return write_tn_sweep(tmp_path_factory.mktemp("multirun") / "tn_sweep")


@pytest.mark.parametrize(
    ("values", "half_width"),
    [
        ([0.84, 0.85, 0.86, 0.87], 3.182446 * 0.0129100 / 2),  # t(0.975, 3) * s / sqrt(n), by hand
        ([0.80, 0.82], 12.7062 * 0.01),  # t(0.975, 1): two seeds have a wide interval
        ([0.9], None),
    ],
)
def test_interval_is_students_t_by_hand(values, half_width):
    found = estimate(values)
    assert (found.n, found.mean) == (len(values), pytest.approx(sum(values) / len(values)))
    assert found.half_width == (half_width and pytest.approx(half_width, abs=1e-6))
    assert estimate([]) is None


def test_seeds_of_a_variant_are_averaged_and_what_is_not_counted_has_its_reason(tn_sweep):
    comparison = report(tn_sweep)
    variants = by_label(comparison)
    assert list(variants) == ["t2_n2", "t2_n6", "t3_n4", "t3_n6", "t4_n6"]
    full, single = variants["t3_n6"], variants["t4_n6"]
    assert (full.exact_accuracy.n, full.exact_accuracy.mean) == (3, pytest.approx(0.93))
    assert full.settings == {"recursion.T": [3], "recursion.n": [6]}
    assert (single.exact_accuracy.mean, single.exact_accuracy.half_width) == (pytest.approx(0.87), None)
    # missing jobs are told to their variant by their overrides
    assert [(len(v.counted), v.planned) for v in variants.values()] == [(3, 3), (2, 3), (2, 3), (3, 3), (1, 3)]
    assert {run.name.partition("-")[0]: (run.status, reason) for run, reason in comparison.not_counted} == {
        "5": ("failed", "RuntimeError: RESOURCE_EXHAUSTED: out of memory while allocating 34359738368 bytes"),
        "7": ("preempted", "stopped at step 200 of 400; the same command resumes it"),
        "13": ("unfinished", "no summary.json: it was killed, or runs on another machine, last logged step 160 of 400"),
        "14": ("missing", "no folder: the job has not started"),
    }
    assert len({len(line) for line in terminal(comparison).splitlines()[:6]}) == 1  # columns are aligned


def test_names_paths_tracking_and_logging_make_no_variants(tmp_path):
    other = ["tracking=offline", "train.log_every_steps=7", "train.resume=never", "data.path=elsewhere"]
    for seed, overrides in enumerate(([], other)):
        write_run(tmp_path / str(seed), config("data=sudoku_4x4", *overrides), seed=seed)
    (variant,) = report(tmp_path).variants
    assert (variant.label, variant.exact_accuracy.n) == ("t3_n6", 2)


def test_a_value_in_a_label_is_as_a_config_file_writes_it():
    assert [show(value) for value in (None, True, 3e-4, 3, "mlp")] == ["null", "true", "0.0003", "3", "mlp"]


def test_labels_name_what_differs_and_no_more(tmp_path):
    cases = {
        "a": [],
        "b": ["ema=off"],
        "c": ["model=attention"],  # positions go with the mixer
        "d": ["optimizer.lr=3e-4"],
        "e": ["data=sudoku_6x6"],  # so does the box with the dataset
        "f": ["recursion=t2_n2", "recursion.variant=single_z"],
    }
    for name, overrides in cases.items():
        write_run(tmp_path / name, config("data=sudoku_4x4", *overrides))
    labels = {variant.counted[0].name: variant.label for variant in report(tmp_path).variants}
    assert labels == {
        "a": "t3_n6",
        "b": "t3_n6, ema off",
        "c": "t3_n6, attention",
        "d": "t3_n6, optimizer.lr=0.0003",
        "e": "t3_n6, sudoku_6x6",
        "f": "t2_n2",
    }


def test_two_variants_are_both_named(tmp_path):
    write_run(tmp_path / "a", config("data=sudoku_4x4"))
    write_run(tmp_path / "b", config("data=sudoku_4x4", "ema=off"))
    assert set(by_label(report(tmp_path))) == {"ema on", "ema off"}


def test_named_experiments_give_the_names(tmp_path):
    for i, override in enumerate(["ema=on", "ema=off", "recursion=t2_n2"]):
        write_run(tmp_path / str(i), config("data=sudoku_4x4", override), experiment=["e10_base", "e2_ema", "e3_rec"][i])
    write_run(tmp_path / "3", config("data=sudoku_4x4"), seed=1, experiment="e4_same_as_base")
    variants = by_label(report(tmp_path))
    assert list(variants) == ["e2_ema", "e3_rec", "e10_base = e4_same_as_base"]
    assert variants["e2_ema"].description == "t3_n6, ema off"
    assert list(by_label(report(tmp_path, group=["ema"]))) == ["ema off", "ema on"]


def test_repeating_a_seed_adds_no_evidence(tmp_path):
    for name, seed, accuracy in (("a", 0, 0.8), ("b", 0, 0.8), ("c", 1, 0.9)):
        write_run(tmp_path / name, config("data=sudoku_4x4"), accuracy, seed=seed)
    comparison = report(tmp_path)
    assert comparison.variants[0].exact_accuracy.n == 2
    assert comparison.variants[0].planned == 2
    assert [(run.name, reason) for run, reason in comparison.not_counted] == [
        ("b", "the same settings and seed as a, which is counted")
    ]
    assert "b repeat a seed" in comparison.warnings[0]


def test_keys_that_a_run_predates_have_their_defaults(tmp_path):
    old = config("data=sudoku_4x4")
    del old["recursion"]["act_continue"]
    write_run(tmp_path / "old", old, seed=0)
    write_run(tmp_path / "new", config("data=sudoku_4x4"), seed=1)
    assert len(report(tmp_path).variants) == 1


@pytest.fixture
def mixed(tmp_path):
    for i, (recursion, ema, lr) in enumerate([("t2_n2", "on", 1e-4), ("t2_n2", "off", 1e-4), ("t3_n6", "on", 1e-4),
                                              ("t3_n6", "off", 1e-4), ("t3_n6", "off", 3e-4)]):  # fmt: skip
        settings = config("data=sudoku_4x4", f"recursion={recursion}", f"ema={ema}", f"optimizer.lr={lr}")
        write_run(tmp_path / ("first" if i < 3 else "second") / str(i), settings, 0.5 + i / 10)
    return tmp_path


def test_group_by_config_groups(mixed):
    comparison = report(mixed, group=["recursion", "ema"])
    assert list(by_label(comparison)) == ["t2_n2, ema off", "t2_n2, ema on", "t3_n6, ema off", "t3_n6, ema on"]
    assert comparison.warnings == ['"t3_n6, ema off" pools runs that differ in optimizer.lr: its mean and interval mix settings']
    assert "2 runs" in terminal(comparison)


@pytest.mark.parametrize(
    ("group", "counts"),
    [
        ("recursion.T", {"recursion.T=2": 2, "recursion.T=3": 3}),  # and does not claim the others
        ("optimizer.lr", {"optimizer.lr=0.0001": 4, "optimizer.lr=0.0003": 1}),
        ("model", {"mlp": 5}),  # which is the same everywhere
        ("sweep", {"sweep=first": 3, "sweep=second": 2}),
    ],
)
def test_group_by_one_key(mixed, group, counts):
    variants = by_label(report(mixed / "first", mixed / "second", group=[group]))
    assert {label: len(variant.counted) for label, variant in variants.items()} == counts


OTHERS = ("paper_hrm_like", "paper_maze_hard", "paper_arc_1", "paper_arc_2")  # what the paper has no row of, or of another puzzle
EXPERIMENTS = sorted({path.stem for path in (CONF_DIR / "experiment").glob("paper_*.yaml")} - {*OTHERS})


def test_every_row_has_its_experiment_and_is_comparable_with_it():
    matches = {name: matching.find(flatten(config(f"experiment={name}")), 65_104) for name in EXPERIMENTS}
    assert {name: match.unlike for name, match in matches.items()} == dict.fromkeys(EXPERIMENTS, ())
    assert sorted(match.row.name for match in matches.values()) == sorted(row.name for row in paper.ROWS)
    assert matches["paper_no_ema"].row.exact_accuracy == 0.799
    assert matches["paper_attention"].row.exact_accuracy == 0.747


def test_what_the_field_published_is_known_and_comparable_with_its_experiment():
    names = ("eqr_sudoku", "fast_sudoku", "wta_sudoku", "urm_sudoku", "paper_maze_hard", "maze_unique", "eqr_maze_unique")
    found = {}
    for name in names:
        cfg = compose([f"experiment={name}", "run_name=x"])
        found[name] = matching.find(flatten(to_plain(cfg)), total_steps(cfg, cfg.data.num_puzzles))
    unlike = ("data.source=generated (paper: csv)",)  # other mazes than theirs
    assert {name: match.unlike for name, match in found.items()} == dict.fromkeys(names, ()) | dict.fromkeys(
        ("maze_unique", "eqr_maze_unique"), unlike
    )
    values = [match.row.exact_accuracy for match in found.values()]
    assert values == [0.864, 0.855, 0.969, 0.776, 0.853, 0.449, 0.822]
    assert len(found) == len(paper.FIELD)


@pytest.mark.parametrize(
    ("overrides", "steps", "unlike"),
    [
        (["train.global_batch_size=256"], 65_104, "train.global_batch_size=256 (paper: 768)"),
        (["data=sudoku_9x9"], 65_104, "data.name=sudoku_9x9 (paper: sudoku_extreme)"),
        (["optimizer.lr=3e-4"], 65_104, "optimizer.lr=0.0003 (paper: 0.0001)"),
        (["ema.rate=0.9"], 65_104, "ema.rate=0.9 (paper: 0.999)"),
        (["data.on_the_fly_aug=0"], 65_104, "augmented variants=0 (paper: 1000)"),
        ([], 400, "steps=400 (paper: 65104)"),
    ],
)
def test_other_settings_leave_the_papers_value_without_a_difference(overrides, steps, unlike):
    match = matching.find(flatten(config("data=sudoku_extreme", *overrides)), steps)
    assert match.row.exact_accuracy == 0.874
    assert match.unlike == (unlike,)


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5, str: lambda v: v + "x", list: lambda v: ["x"]}
PAPERS = flatten(config("data=sudoku_extreme"))


@pytest.mark.parametrize("key", sorted(key for key in PAPERS if role(key) == NUMBERS or key in way_keys()))
def test_every_key_that_changes_a_number_counts_beside_the_paper(key):
    """Votes, early exit, other weights to start from, an embedding alone that learns, and whatever key comes next."""
    value = OTHER[type(PAPERS[key])](PAPERS[key]) if PAPERS[key] is not None else 3
    match = matching.find({**PAPERS, key: value}, 65_104)
    of_others = ("model.num_heads", "model.rope_theta", "optimizer.lr_min_ratio")  # no attention, no cosine
    free = {*matching.FREE, *of_others} - {"data.num_aug", "data.on_the_fly_aug"}  # of which the paper has so many
    own = match is not None and match.comparable and match.row is paper.ROWS[0]
    assert own == (key in free)


def test_findings_in_the_puzzles_and_votes_leave_the_papers_value_without_a_difference():
    assert not matching.find(PAPERS, 65_104, None, ["test puzzles are in training"]).comparable
    votes = matching.find(flatten(config("data=sudoku_extreme", "inference=votes32")), 65_104)
    assert votes.unlike == ("inference.copies=32 (paper: 1)", "inference.selection=vote (paper: last)")
    assert not votes.same_measure
    assert (
        matching.find(flatten(config("data=sudoku_extreme", "recursion=t4_n6")), 65_104) is None
    )  # which the paper does not report


def test_the_difference_is_given_only_on_the_papers_data(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"x{seed}", config("data=sudoku_extreme"), 0.85 + seed / 100, seed=seed, steps=65_104)
        write_run(tmp_path / f"s{seed}", config("data=sudoku_4x4"), 0.95, seed=seed, steps=65_104)
    extreme, small = (by_label(report(tmp_path))[label] for label in ("sudoku_extreme", "sudoku_4x4"))
    assert extreme.difference == pytest.approx(0.855 - 0.874)
    assert small.difference is None
    assert small.paper.row.exact_accuracy == 0.874
    text = terminal(report(tmp_path))
    assert "87.4*" in text
    assert "-1.9" in text
    for seed in range(2):
        shutil.rmtree(tmp_path / f"x{seed}")
    assert "paper" not in terminal(report(tmp_path))  # whose values say nothing of other puzzles


def test_torn_files_are_named(tmp_path):
    good = write_run(tmp_path / "good")
    torn = write_run(tmp_path / "torn")
    (torn / "summary.json").write_text((good / "summary.json").read_text()[:50])
    write_run(tmp_path / "yaml").joinpath("config.yaml").write_text("model: {mixer: [")
    write_run(tmp_path / "empty").joinpath("config.yaml").write_text("")
    write_run(tmp_path / "list").joinpath("summary.json").write_text("[1]")
    write_run(tmp_path / "binary").joinpath("summary.json").write_bytes(b"\xff\x00")
    write_run(tmp_path / "nan", exact_accuracy=float("nan"))  # written as NaN, which is not JSON but which Python reads
    write_run(tmp_path / "odd", exact_accuracy="high")
    write_run(tmp_path / "strange", status="sleeping")
    write_run(tmp_path / "noconfig").joinpath("config.yaml").unlink()
    comparison = report(tmp_path)
    reasons = {run.name: (run.status, reason.split(":")[0]) for run, reason in comparison.not_counted}
    assert reasons.pop("yaml") == ("damaged", "config.yaml")
    assert reasons.pop("empty") == ("damaged", "config.yaml")
    assert reasons.pop("noconfig") == ("damaged", "config.yaml is missing")
    assert reasons == dict.fromkeys(["torn", "list", "binary", "nan", "odd", "strange"], ("damaged", "summary.json"))
    assert [run.name for variant in comparison.variants for run in variant.counted] == ["good"]


def test_a_torn_metrics_line_costs_only_that_line(tmp_path):
    folder = write_run(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text + '{"kind": "eval", "glob')
    run = only_run(folder)
    assert run.status == "completed"
    assert len(run.evaluations) == 5
    assert run.warnings == ("metrics.jsonl: 1 unreadable line(s) left out",)
    (folder / "summary.json").unlink()  # a killed run leaves a torn last line: nothing to warn of
    assert only_run(folder).warnings == ()


def test_a_job_that_died_before_its_first_step(tmp_path):
    early = tmp_path / "sweep" / "0"
    (early / "config").mkdir(parents=True)
    (early / "config" / "hydra.yaml").write_text("hydra: {runtime: {choices: {experiment: null}}}\n")
    (early / "config" / "config.yaml").write_text("recursion: {T: 2, n: 2}\nrun_name: run-${now:%Y}\n")
    run = only_run(tmp_path / "sweep")
    assert (run.status, run.experiment, run.settings["recursion.T"]) == ("unfinished", None, 2)
    assert run.reason == "no summary.json: it was killed, or runs on another machine, no step logged yet"
    with exclusive(early):
        assert only_run(tmp_path / "sweep").reason == "still running, no step logged yet"


def test_a_job_that_its_sweep_failed_before_it_began(tmp_path):
    """The sweep writes such a summary; the job is told to its variant by its overrides."""
    jobs = {str(seed): ["ema=off", f"seed={seed}"] for seed in range(2)}
    write_run(tmp_path / "0", config("data=sudoku_4x4", "ema=off"))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "summary.json").write_text('{"status": "failed", "reason": "TIMEOUT in the queue", "run_name": "1"}')
    write_grid(tmp_path, jobs)
    comparison = report(tmp_path)
    ((run, reason),) = comparison.not_counted
    assert (run.status, reason, run.seed) == ("failed", "TIMEOUT in the queue", 1)
    assert [(len(v.counted), v.planned) for v in comparison.variants] == [(1, 2)]


def test_a_missing_job_that_may_belong_to_several_variants_is_planned_in_none(tmp_path):
    """Its overrides without the seed are those of both variants, which differ in the seed alone."""
    jobs = {str(seed): ["ema=off", f"seed={seed}"] for seed in range(3)}
    for seed in range(2):
        write_run(tmp_path / str(seed), config("data=sudoku_4x4", "ema=off"), seed=seed)
    write_grid(tmp_path, jobs)
    assert [(len(v.counted), v.planned) for v in report(tmp_path).variants] == [(2, 3)]
    assert [(len(v.counted), v.planned) for v in report(tmp_path, group=["seed"]).variants] == [(1, 1), (1, 1)]


def test_a_sweep_of_which_nothing_started_and_a_damaged_grid(tmp_path):
    grid = tmp_path / "grid.json"
    write_grid(tmp_path, {"0": ["recursion=t2_n2", "seed=4"]})
    run = only_run(tmp_path)
    assert (run.name, run.status, run.seed) == ("0", "missing", 4)
    assert report(tmp_path).variants == []
    damages = (
        (grid.write_text, '{"jobs": 3}'),
        (grid.write_text, r'{"jobs": [{"dir": "a\u0000b"}]}'),
        (grid.symlink_to, "grid.json"),
        (grid.symlink_to, "nowhere"),
    )
    for damage, content in damages:
        grid.unlink()
        damage(content)
        run = only_run(tmp_path)
        assert (run.name, run.status) == ("grid.json", "damaged")
        assert "jobs without a folder are not known" in run.reason


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "run")
    (tmp_path / "a" / "b" / "run" / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("defaults: [schema]\n")  # a Hydra source, not a run
    assert [run.name for run in collect([tmp_path])] == ["a/b/run"]
    assert len(collect([tmp_path, tmp_path / "a", tmp_path / "a" / "b" / "run"])) == 1
    assert only_run(tmp_path / "a" / "b" / "run").name == "run"


def test_files_hold_the_numbers(tn_sweep, tmp_path, capsys):
    main([str(tn_sweep), "--out", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert [row["variant"] for row in rows] == ["t2_n2", "t2_n6", "t3_n4", "t3_n6", "t4_n6"]
    assert float(rows[3]["exact_accuracy_mean"]) == pytest.approx(0.93)
    assert rows[4]["exact_accuracy_ci95_half_width"] == ""
    record = json.loads((tmp_path / "report.json").read_text())
    assert len(record["runs"]) == 15
    assert [entry["status"] for entry in record["not_counted"]] == ["failed", "preempted", "unfinished", "missing"]
    assert record["variants"][3]["unlike_paper"][0] == "data.name=sudoku_4x4 (paper: sudoku_extreme)"
    for name in ("curves.png", "bars.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    page = (tmp_path / "index.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    printed = capsys.readouterr().out
    assert "93.0 ± 6.6" in printed
    assert "87.0 (n=1)" in printed
    assert "not in the means: 4 of 15 jobs" in printed
    assert printed.rstrip().endswith(str(tmp_path / "index.html"))


@pytest.mark.long
def test_the_same_runs_give_the_same_bytes(tn_sweep, tmp_path):
    for name in ("one", "two"):
        main([str(tn_sweep), "--out", str(tmp_path / name)])
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_what_comes_from_files_cannot_steer_page_or_terminal(tmp_path):
    evil = '<script>alert("x")</script>\x1b[31m$\\frac'
    folder = write_run(tmp_path / "run", config("data=sudoku_4x4"), None, status="failed", reason=evil)
    settings = config("data=sudoku_4x4") | {"<script>key": "<script>value"}
    settings["data"]["name"] = evil.replace("\x1b", "")
    write_run(tmp_path / "<script>run", settings, warnings=["<img src=x onerror=alert(1)>"])
    main([str(tmp_path)])
    assert not (tmp_path / "report" / "steps.png").exists()  # of runs without accuracies by step
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert" in page
    assert "<img src=x" not in page
    assert "\x1b" not in terminal(report(tmp_path))
    assert only_run(folder).reason == evil


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "nope is not a folder"),
        (["."], "no runs in ."),
        (["outputs", "--group", "recursion.t"], "--group recursion.t is not a config key: did you mean recursion"),
        (["outputs", "--sort"], "unrecognized arguments: --sort"),
        (["outputs", "--out", "file"], "--out file: cannot be written to"),
        (["--group", "ema"], "give at least one folder"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if arguments[0] == "outputs":
        write_run(tmp_path / "outputs" / "a")
    refused(main, arguments, message)


def test_the_command_puts_the_report_of_several_folders_beside_them_and_exits_with_2_otherwise(tmp_path):
    for name in "ab":
        write_run(tmp_path / "outputs" / name)
    assert "report/index.html" in run(tmp_path, "trm.report", "outputs/a", "outputs/b", "--group", "recursion,ema").stdout
    assert (tmp_path / "report" / "index.html").exists()
    done = run(tmp_path, "trm.report", "nope", check=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: nope is not a folder")
    assert done.stderr.count("\n") == 1


def test_a_report_that_is_stopped_leaves_the_older_one_as_it_was(tmp_path):
    write_run(tmp_path / "runs" / "a")
    metrics = write_run(tmp_path / "runs" / "b") / "metrics.jsonl"
    metrics.unlink()
    os.mkfifo(metrics)  # a run that takes as long to read as the test likes
    older = {tmp_path / "runs/report" / name: b"older" for name in ("report.csv", "index.html")}
    write_files("--out", tmp_path, older)
    process = start(tmp_path, "runs", command=("-m", "trm.report"))
    with metrics.open("wb"):
        code, out, err = stopped(process)
    assert (code, out) == (130, "")
    assert err == "stopped: runs read: 1 of 2; runs/report is as it was\n"
    assert {path: path.read_bytes() for path in (tmp_path / "runs/report").iterdir()} == older


def test_files_are_replaced_when_all_are_written(tmp_path):
    older, link, folder = tmp_path / "older", tmp_path / "link", tmp_path / "folder"
    older.write_text("older")
    link.symlink_to("older")
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be written to"):
        write_files("--out", tmp_path, {older: "newer", folder: "newer"})
    assert (older.read_text(), set(tmp_path.iterdir())) == ("older", {older, link, folder})
    write_files("--out", tmp_path, {link: "newer"})
    assert (older.read_text(), link.is_symlink()) == ("newer", True)


def test_a_job_whose_folder_is_a_link_in_a_circle_is_missing(tmp_path):
    (tmp_path / "job").symlink_to("job")
    (tmp_path / "grid.json").write_text(json.dumps({"jobs": [{"dir": "job", "overrides": ["seed=" + "9" * 5000]}]}))
    [run] = collect([tmp_path])
    assert (run.status, run.seed) == ("missing", None)


def test_a_finding_is_told_once_of_all_variants_that_share_it(tmp_path):
    data = {"train_digest": "a", "test_digest": "b", "train_puzzles": 9, "test_puzzles": 9}
    for name, found in (("t2_n2", ["shared"]), ("t2_n6", ["shared", "own"]), ("t3_n4", ["shared"])):
        write_run(tmp_path / name, config(f"recursion={name}"), data=data | {"caveats": found})
    told = compare(collect([tmp_path])).warnings
    assert [warning for warning in told if "shared" in warning] == ["all variants: shared"]
    [own] = [warning for warning in told if warning.endswith(": own")]
    assert "t2_n6" in own
    assert "t2_n2" not in own
