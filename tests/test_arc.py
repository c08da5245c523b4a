"""ARC as a task: its files and what is refused of them, the training stream, votes in runs, and taking weights over."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_cases import load_case
from running import metrics, run, summary

import trm
from trm.backends import start
from trm.cli import compose
from trm.config import HardwareConfig
from trm.core.step import train_step
from trm.data.build import build_dataset
from trm.data.format import load_catalogue, load_dataset
from trm.data.loader import Host
from trm.data.pairs import BLOCK_STEPS, PairEvalLoader, PairTrainLoader
from trm.errors import ConfigError, DataError
from trm.inference.evaluator import make_evaluator
from trm.run.checkpoint import TABLE_FILE, load_checkpoint
from trm.run.saved import open_run
from trm.solve import evaluated as solve_evaluated
from trm.solve import find_pairs
from trm.tasks.arc.grids import ITSELF
from trm.tasks.arc.votes import ArcVotes
from trm.tasks.base import task_of
from trm.tasks.pairs import Catalogue

SMALL = ["data=arc_small", "data.canvas=6", "data.num_puzzles=4", "data.on_the_fly_aug=5"]
RUN = [
    "experiment=arc_small", *SMALL, "hardware.backend=eager", "tracking=none", "train.max_steps=4", "train.log_every_steps=1",
    "train.eval_every_steps=2", "train.checkpoint_every_steps=2", "train.global_batch_size=8", "recursion.n_sup=2",
    "model.hidden_size=32", "evaluate.max_variants=2", "optimizer.schedule=constant",  # so that a run can be made longer
]  # fmt: skip


def task_json(*shape, test=1, seed=0):
    random = np.random.default_rng(seed)
    pairs = [{side: random.integers(0, 10, shape).tolist() for side in ("input", "output")} for _ in range(3 + test)]
    return {"train": pairs[:3], "test": pairs[3:]}


def source(folder, tasks, subset="training", solutions=None):
    folder.mkdir(exist_ok=True)
    (folder / f"arc-agi_{subset}_challenges.json").write_text(json.dumps(tasks))
    if solutions is not None:
        (folder / f"arc-agi_{subset}_solutions.json").write_text(json.dumps(solutions))
    return folder


def data_of(folder, *overrides):
    return compose([*SMALL, f"data.source_dir={folder}", f"data.path={folder}/dataset", "run_name=r", *overrides]).data


def submitted(votes):
    (text,) = [text for name, text in votes.documents().items() if name.startswith("submission")]
    return json.loads(text)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return source(tmp_path_factory.mktemp("tasks"), {f"task{i}": task_json(2 + i, 3, test=1 + i % 2, seed=i) for i in range(4)})


# ------------------------------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda task: task["train"].clear(), r"challenges\.json: task bad: has no train pairs"),
        (lambda task: task["test"].clear(), r"task bad: has no test pairs"),
        (lambda task: task["train"][1].pop("output"), r"task bad, train pair 2: has no output"),
        (lambda task: task["train"][0].update(input=[[0] * 31]), r"train pair 1, input: has 1 rows of 31 cells"),
        (lambda task: task["test"][0].update(input=[[0, 10]]), r"test pair 1, input: holds 10, which is not a colour"),
        (lambda task: task["test"][0].update(output=[[0, 1], [2]]), r"test pair 1, output: rows have 1 and 2 cells"),
        (lambda task: task["test"][0].update(output=[]), r"test pair 1, output: is an empty grid"),
        (lambda task: task["train"][2].update(input=[[True]]), r"train pair 3, input: holds True"),
        (lambda task: task["train"].append(7), r"train pair 4: has no input"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, edit, words):
    bad = task_json(3, 3)
    edit(bad)
    with pytest.raises(DataError, match=words) as caught:
        build_dataset(data_of(source(tmp_path / "s", {"good": task_json(2, 2), "bad": bad}), "data.num_puzzles=2"))
    assert "\n" not in str(caught.value)


def test_ids_that_clash_missing_subsets_and_editions_are_refused(tmp_path):
    folder = source(tmp_path / "s", {"one": task_json(2, 2)})
    source(folder, {"one": task_json(2, 3)}, "concept")
    with pytest.raises(DataError, match=r"arc-agi_concept_challenges\.json: task one is in .*training_challenges\.json too"):
        build_dataset(data_of(folder, "data.subsets=[training,concept]"))
    (folder / "arc-agi_training_challenges.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(DataError, match=r"training_challenges\.json: not readable as JSON \(a occurs twice\)"):
        build_dataset(data_of(folder))
    with pytest.raises(DataError, match=r"holds neither arc-agi_evaluation_challenges\.json nor a folder evaluation"):
        build_dataset(data_of(folder, "data.subsets=[evaluation]", "data.test_subsets=[evaluation]"))
    with pytest.raises(ConfigError, match="training belongs to ARC-AGI-1 and evaluation2 to ARC-AGI-2"):
        data_of(folder, "data.subsets=[training,evaluation2]")


def test_a_file_a_task_and_unknown_answers(tmp_path):
    folder = tmp_path / "training"
    folder.mkdir()
    for i in range(2):
        task = task_json(3, 2, seed=i, test=2)
        if i:
            del task["test"][0]["output"]
        (folder / f"task{i}.json").write_text(json.dumps(task))
    data = data_of(tmp_path, "data.num_puzzles=2")
    report = build_dataset(data)
    told = "the answers to 1 of 4 test inputs are not known: they are answered but not scored"
    assert report.record["caveats"] == [told]
    assert str(report).count(told) == 1
    test = load_dataset(report.path, "test", task_of(data))
    loader = PairEvalLoader(test, global_batch_size=4)
    rows, ballots = loader.rows(0, loader.num_rows), loader.ballots()
    answers = np.where(rows["labels"] < 0, 0, rows["labels"])
    answers[(rows["labels"] < 0).all(axis=1), 0] = 5  # something is said to the unknown
    ballots.add(rows["puzzle_identifiers"], rows["inputs"], answers, np.full(len(answers), 0.5))
    assert ballots.scores()["pass@1"] == 1.0
    submission = submitted(ballots)
    assert {name: len(given) for name, given in submission.items()} == {"task0": 2, "task1": 2}
    assert submission["task1"][0]["attempt_1"][0][0] in range(10)


@pytest.mark.parametrize(
    ("layout", "subsets", "tests"),
    [
        ({"data/training": 2, "data/evaluation": 2}, ["training", "evaluation"], ["evaluation"]),
        ({"data/training": 2, "data/evaluation": 2}, ["training2", "evaluation2"], ["evaluation2"]),
        ({"corpus/AboveBelow": 2, "corpus/Center": 2}, ["concept"], ["concept"]),
        ({"tasks": 2, "evaluation": 2}, ["tasks", "evaluation"], ["evaluation"]),
    ],
)
def test_repositories_are_read_as_they_are(tmp_path, layout, subsets, tests):
    for place, count in layout.items():
        folder = tmp_path / "source" / place
        folder.mkdir(parents=True)
        for i in range(count):
            task = task_json(3, 2, seed=i, test=2)
            name = f"{folder.name}{i}"
            (folder / f"{name}.json").write_text(
                json.dumps(task["train"] + task["test"] if place == "tasks" else task), "utf-8-sig"
            )
            (folder / f"._{name}.json").write_bytes(b"\0\5\x16\7")
        for other in (".DS_Store", "README.md", f"{folder.name}Minimal.json" if "corpus" in place else ".x.json"):
            (folder / other).write_text("{}")
    data = data_of(tmp_path / "source", f"data.subsets={subsets}", f"data.test_subsets={tests}", "data.num_puzzles=4")
    report = build_dataset(data)
    assert report.record["puzzles"] == {"train": 4, "test": 2 if len(subsets) > 1 else 4}
    if "tasks" in layout:
        with pytest.raises(DataError, match=r"task tasks0 is a list of pairs.*data\.test_subsets"):
            build_dataset(replace(data, path=str(tmp_path / "other"), test_subsets=["tasks"]))


def test_another_edition_or_layout_is_named(tmp_path):
    for count, subset, other in ((120, "evaluation", "evaluation2"), (400, "training2", "training")):
        folder = source(tmp_path / subset, {f"t{i}": task_json(2, 2) for i in range(count)}, subset.removesuffix("2"))
        with pytest.raises(
            DataError, match=f"holds {count} tasks, as many as the other edition .*: name {other} instead of {subset} in"
        ):
            build_dataset(data_of(folder, f"data.subsets=[{subset}]", f"data.test_subsets=[{subset}]"))
    (tmp_path / "odd/mini").mkdir(parents=True)
    (tmp_path / "odd/mini/a.json").write_text("{}")
    with pytest.raises(DataError, match=r"a folder training of task files, but 1 json file in mini: give .* data\.subsets"):
        build_dataset(data_of(tmp_path / "odd"))


def test_solutions_are_read_from_their_file(tmp_path):
    task = task_json(2, 2)
    answer = task["test"][0].pop("output")
    folder = source(tmp_path / "s", {"one": task}, solutions={"one": [answer]})
    data = data_of(folder, "data.num_puzzles=1")
    tests = load_catalogue(load_dataset(build_dataset(data).path, "test", task_of(data))).tests
    assert tests["one"]["test"][0]["output"] == answer
    source(folder, {"one": task}, solutions={})
    with pytest.raises(DataError, match="has no solution of task one"):
        build_dataset(data_of(folder, "data.num_puzzles=1", f"data.path={tmp_path}/other"))


def test_the_same_settings_give_the_same_bytes(tasks, tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        build_dataset(data_of(tasks, f"data.path={path}"))
    files = sorted(file.relative_to(paths[0]) for file in paths[0].rglob("*") if file.is_file())
    assert len(files) > 10
    assert all((paths[0] / file).read_bytes() == (paths[1] / file).read_bytes() for file in files)


# --------------------------------------------------------------------------------------------------------------------- stream


@pytest.fixture(scope="module")
def train(tasks, tmp_path_factory):
    data = data_of(tasks, f"data.path={tmp_path_factory.mktemp('d')}/data")
    return load_dataset(build_dataset(data).path, "train", task_of(data))


def loader(train, **settings):
    return PairTrainLoader(train, **{"seed": 3, "global_batch_size": 7, "data_seed": 0, **settings})


def test_an_epoch_takes_every_puzzle_once_with_its_pairs_in_a_row(train):
    stream, seen = loader(train), []
    for step in range(40):
        groups, variants, pairs = stream.places(step)
        assert len(groups) == 7
        for visit in (slice(0, 3), slice(3, 6), slice(6, 7)):  # the last one is cut where the batch is full
            assert len(set(groups[visit])) == len(set(variants[visit])) == 1
            assert len(set(pairs[visit])) == len(pairs[visit])
            seen.append(int(groups[visit][0]))
    for epoch in range(len(seen) // 4):
        assert sorted(seen[4 * epoch : 4 * epoch + 4]) == [0, 1, 2, 3]


def test_steps_are_the_same_from_anywhere_and_on_any_hosts(train):
    whole = loader(train, global_batch_size=8)
    for step in (0, 5, BLOCK_STEPS - 1, BLOCK_STEPS, 2 * BLOCK_STEPS + 3):
        batch = whole.batch(step)
        parts = [loader(train, global_batch_size=8, host=Host(i, 2)).batch(step) for i in range(2)]
        assert all(np.array_equal(np.concatenate([part[name] for part in parts]), batch[name]) for name in batch)
    assert not np.array_equal(whole.batch(0)["inputs"], whole.batch(BLOCK_STEPS)["inputs"])


def test_variants_are_drawn_uniformly(train):
    stream = loader(train)
    drawn = np.concatenate([np.unique(np.stack(stream.places(step)[:2], 1), axis=0) for step in range(1200)])
    for group, count in enumerate(train.counts):
        found = np.bincount(drawn[drawn[:, 0] == group, 1], minlength=count)
        assert ((found - found.mean()) ** 2 / found.mean()).sum() < 40


# ---------------------------------------------------------------------------------------------------------------------- votes


def test_ties_are_broken_by_the_first_answer_and_equal_inputs_share_their_votes():
    grid = [[1, 2]]
    plain = {"train": [], "test": [{"input": grid, "output": [[3]]}, {"input": grid, "output": [[4]]}]}
    catalogue = Catalogue(["t"], np.array([-1, 0], np.int32), np.stack([0 * ITSELF, ITSELF]), {"t": plain})
    assert [catalogue.identifiers_of(name).tolist() for name in ("t", "other")] == [[1], []]
    votes = ArcVotes(catalogue, 3)
    question = np.array([[3, 4, 1, 1, 1, 0, 0, 0, 0]])
    for colour, share in ((5, 0.5), (4, 0.5), (3, 0.25), (3, 0.25)):
        answer = np.array([[2 + colour, 1, 0, 1, 0, 0, 0, 0, 0]])
        votes.add(np.array([1]), question, answer, np.array([share]))
    votes.add(np.array([0]), question, question, np.array([1.0]))  # padding
    (tally,) = votes.tallies["t"].values()
    assert [grid.tolist() for grid, _, _ in tally.ranked()] == [[[3]], [[5]]]
    assert votes.scores() == {"pass@1": 0.5, "pass@2": 0.5, "pass@5": 1.0, "pass@10": 1.0, "pass@100": 1.0, "pass@1000": 1.0}
    other = ArcVotes(catalogue, 3)
    other.take(votes.arrays())
    assert (other.scores(), other.documents()) == (votes.scores(), votes.documents())
    assert submitted(votes)["t"][1] == {"attempt_1": [[3]], "attempt_2": [[5]]}


# ----------------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.long
def test_a_run_learns_votes_saves_and_resumes_to_the_bit(tasks, tmp_path):
    arguments = [*RUN, f"data.source_dir={tasks}", f"data.path={tmp_path}/data", "evaluate.votes=run"]
    run(tmp_path, "trm.train", *arguments, "run_name=whole")
    run(tmp_path, "trm.train", *arguments, "run_name=parts", "train.max_steps=2")
    run(tmp_path, "trm.train", *arguments, "run_name=parts")
    whole, parts = (tmp_path / "outputs" / name for name in ("whole", "parts"))
    assert metrics(whole, "eval")[-1] == metrics(parts, "eval")[-1]
    for file in ("submission.json", "answers.json", "checkpoints/step_4/state.safetensors", f"checkpoints/step_4/{TABLE_FILE}"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()
    tensors, _ = load_checkpoint(whole / "checkpoints" / "step_4")
    votes = tensors["votes/votes"][:, 0].sum()
    rows = 2 * metrics(whole, "eval")[-1]["count"]
    assert votes == json.loads((whole / "answers.json").read_text())["rows"] == rows
    done = run(tmp_path, "trm.evaluate", "checkpoint=outputs/whole")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["count"] == 6 * 6  # six test inputs in all variants
    assert (whole / "evaluation" / "submission.json").exists()
    done = run(tmp_path, "trm.solve", "checkpoint=outputs/whole", "task1", "--html", "page.html", "evaluate.max_variants=3")
    assert "test input 2:" in done.stdout
    assert "3 variants vote" in done.stdout
    assert "Content-Security-Policy" in (tmp_path / "page.html").read_text()
    (tmp_path / "new.json").write_text(json.dumps(task_json(2, 2)))
    done = run(tmp_path, "trm.solve", "checkpoint=outputs/whole", "new.json")
    assert "blank identifier" in done.stdout
    done = run(tmp_path, "trm.report", "outputs/whole")
    assert "votes of all evaluations of the run" in " ".join(done.stdout.split())
    page = (whole / "report" / "index.html").read_text()
    assert "Solved and failed puzzles" in page

    # weights without state, the embedding alone learns
    run(tmp_path, "trm.train", *arguments, "run_name=tuned", "train.init_from=outputs/whole", "train.trainable=puzzle_embedding")
    first, second = (load_checkpoint(tmp_path / "outputs" / name / "checkpoints/step_4")[0] for name in ("whole", "tuned"))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items() if name.startswith(("weights/", "ema/")))
    assert not torch.equal(second["puzzle_embedding"], first["puzzle_embedding"])
    assert summary(tmp_path / "outputs" / "tuned")["status"] == "completed"
    other = [argument for argument in arguments if not argument.startswith("data.path=")]
    other += [f"data.path={tmp_path}/more", "data.on_the_fly_aug=7", "train.max_steps=1", "optimizer.puzzle_emb_lr=0"]
    done = run(tmp_path, "trm.train", *other, "run_name=more", "train.init_from=outputs/whole")
    told = (tmp_path / "outputs" / "more" / "train.log").read_text()
    assert "every row starts from the mean of its rows" in told
    table = load_checkpoint(tmp_path / "outputs/more/checkpoints/step_1")[0]["puzzle_embedding"]
    torch.testing.assert_close(table[3], first["puzzle_embedding"].mean(0))


def evaluated(folder, *arguments):
    """The last line of `trm.evaluate` and what it wrote."""
    done = run(folder, "trm.evaluate", "checkpoint=outputs/r", *arguments, "--out", "out")
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.fixture(scope="module")
def trained(tasks, tmp_path_factory):
    """A folder with `outputs/r`; of one of its tasks an answer is not known, and of one all variants are alike."""
    folder = tmp_path_factory.mktemp("run")
    content = json.loads((tasks / "arc-agi_training_challenges.json").read_text())
    del content["task3"]["test"][0]["output"]
    for pair in content["task0"]["train"] + content["task0"]["test"]:
        pair.update(input=[[0, 0], [0, 0]], output=[[0]])
    arguments = [*RUN, f"data.source_dir={source(folder / 'tasks', content)}", f"data.path={folder}/data"]
    arguments += ["train.max_steps=2", "train.checkpoint_every_steps=1", "evaluate.max_puzzles=3", "model.mlp=swiglu"]
    run(folder, "trm.train", *arguments, "run_name=r")
    return folder


def test_costs_are_of_a_test_input_in_all_its_variants(trained):
    one, told = evaluated(trained, "evaluate.max_puzzles=null", "evaluate.max_variants=1")
    many, _ = evaluated(trained, "evaluate.max_puzzles=null", "evaluate.max_variants=4")
    assert (one["candidates"], many["candidates"]) == (1, 3.5)  # five test inputs in four variants, one in one
    assert many["flops_per_puzzle"] == 3.5 * one["flops_per_puzzle"] > 0
    assert one["count"] == 5  # six test inputs, of which one has no answer
    assert "partial" not in told
    kept = json.loads((trained / "out" / "evaluation.json").read_text())
    assert (kept["rows"][-1]["candidates"], kept["rows"][-1]["flops_per_puzzle"]) == (3.5, many["flops_per_puzzle"])


def test_a_submission_of_a_part_of_the_tasks_says_so(trained):
    words = "submission_partial_3_of_4.json is partial: it answers 3 of 4 test tasks"
    _, told = evaluated(trained)
    files = {path.name for path in (trained / "out").iterdir()}
    assert words in told
    assert len(json.loads((trained / "out" / "submission_partial_3_of_4.json").read_text())) == 3
    assert "submission_partial_3_of_4.json" in files
    folder = trained / "outputs" / "r"
    assert not (folder / "submission.json").exists()
    assert [warning.startswith(words) for warning in summary(folder)["warnings"]].count(True) == 1
    assert words in (folder / "train.log").read_text()


@pytest.mark.parametrize("more", [(), ("evaluate.max_variants=2",), ("inference.supervision_steps=1", "evaluate.max_variants=3")])
def test_every_task_is_solved_as_it_is_evaluated(trained, more):
    saved = open_run(trained / "outputs/r", ["evaluate.max_puzzles=null", *more])
    random = torch.Generator().manual_seed(0)
    loud = {name: tensor + torch.randn(tensor.shape, generator=random) for name, tensor in saved.ema.items()}
    saved = replace(saved, ema=loud, puzzle_embedding=torch.randn(saved.puzzle_embedding.shape, generator=random))
    runtime = start(HardwareConfig(name="cpu", backend="eager"))
    evaluator = make_evaluator(saved.cfg, runtime, saved.arch, saved.buffers)
    every = evaluator.run(saved.eval_weights, saved.puzzle_embedding).ballots
    given = set()
    for number, name in enumerate(submitted(every)):
        found, alone, _ = find_pairs(saved, task_of(saved.cfg.data), f"test:{number}")
        result, loader = solve_evaluated(saved, alone)
        ours, theirs = result.ballots.shown(found), every.shown(name)
        for test, other in zip(ours["tests"], theirs["tests"], strict=True):
            assert [(a["grid"], a["votes"]) for a in test["answers"]] == [(a["grid"], a["votes"]) for a in other["answers"]]
            assert [a["confidence"] for a in test["answers"]] == pytest.approx([a["confidence"] for a in other["answers"]])
            given |= {str(answer["grid"]) for answer in test["answers"]}
        assert result.work.candidates == loader.num_rows
    assert len(given) > 3


def test_the_api_answers_a_task_as_the_command_does(trained, tmp_path):
    shown = json.loads(run(trained, "trm.solve", "checkpoint=outputs/r", "task1", "--json", "evaluate.max_variants=3").stdout)
    content = json.loads((trained / "tasks" / "arc-agi_training_challenges.json").read_text())["task1"]
    (tmp_path / "task1.json").write_text(json.dumps(content))
    network = trm.load(trained / "outputs/r", ["evaluate.max_variants=3"])
    for given in ("task1", content, tmp_path / "task1.json"):
        found = network.solve(given)
        assert (found.name, found.shown["tests"]) == ("task1", shown["tests"])
    assert (len(found), found.questions.shape, found.answers.shape) == (2, (2, 36), (2, 36))
    first = [test["answers"][0] for test in shown["tests"]]
    assert [grids[0] for grids in found.attempts] == [answer["grid"] for answer in first]
    assert found.votes.tolist() == [answer["votes"] for answer in first]
    assert found.solved.tolist() == [test["answers"][0]["grid"] == test["output"] for test in shown["tests"]]
    assert found.cost["candidates"] == 3
    assert str(found).endswith("task1: 3 variants vote")
    unknown = network.solve(task_json(2, 2, seed=9))
    assert (unknown.name, len(unknown), "blank identifier" in unknown.how) == ("task", 1, True)
    assert not network.settings.evaluate.blank_identifiers
    with pytest.raises(DataError, match="the path of a task's json file"):
        network.solve(found.questions)
    with pytest.raises(DataError, match="the task: has no test pairs"):
        network.solve({"train": content["train"]})
    with pytest.raises(ConfigError, match="have no frames"):
        network.think("test:0")


def test_weights_go_out_and_come_back_with_as_many_identifiers_as_the_dataset_has(trained):
    run(trained, "trm.interop", "export", "checkpoint=outputs/r", "weights.pt")
    content = f"data.source_dir={trained / 'tasks'}"
    settings = [*RUN, content, f"data.path={trained}/data", "ema=off", "model.mlp=swiglu"]
    run(trained, "trm.interop", "import", "weights.pt", "outputs/back", *settings)
    there, back = (open_run(trained / "outputs" / name, []) for name in ("r", "back"))
    assert torch.equal(back.puzzle_embedding, there.puzzle_embedding)
    assert len(back.puzzle_embedding) < 1 + 4 * 6  # small tasks have fewer variants than are asked for


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        (["trm.evaluate"], "inference=ptrm"),
        (["trm.evaluate"], "inference=eqr"),
        (["trm.evaluate"], "inference=halt_first"),
        (["trm.evaluate"], "inference.noise=0.3"),
        (["trm.solve", "test:0"], "inference=ptrm"),
        (["trm.solve", "test:0"], "inference.early_exit=true"),
    ],
)
def test_what_variants_cannot_do_is_refused(trained, command, argument):
    refused = run(trained, *command, "checkpoint=outputs/r", argument, check=2)
    assert refused.stderr.startswith(f"error: {argument.removesuffix('.noise=0.3').removesuffix('=true')}")
    assert "variants of an ARC task" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_ladder_leaves_out_what_variants_cannot_do(trained):
    ladder = ["inference=frontier", "inference.ladder=[standard,ptrm]", "evaluate.max_variants=1", "--out", "ladder"]
    done = run(trained, "trm.evaluate", "checkpoint=outputs/r", *ladder)
    assert "inference=ptrm is left out" in done.stdout
    rows = json.loads((trained / "ladder" / "frontier.json").read_text())["rows"]
    assert {row["inference"] for row in rows} == {"standard"}


def test_only_the_newest_and_the_best_checkpoint_keep_the_table(trained):
    folders = [trained / f"outputs/r/checkpoints/step_{step}" for step in (1, 2)]
    assert [(folder / TABLE_FILE).exists() for folder in folders] == [False, True]
    done = run(trained, "trm.evaluate", f"checkpoint={folders[0]}", check=2)
    assert "only the newest and the best checkpoint" in done.stderr


def test_the_embedding_alone_learns_with_train_trainable(golden_case):
    case = load_case(golden_case)
    state, buffers = case.state(), case.buffers()
    if state.puzzle_embedding is None:
        pytest.skip("the case has no puzzle embedding")
    batch = {name: torch.from_numpy(rows) for name, rows in case.batch(0).items()}
    both = [train_step(replace(case.step_config, trainable=kind), state, buffers, batch)[0] for kind in ("all", "puzzle_embedding")]
    assert torch.equal(both[0].puzzle_embedding, both[1].puzzle_embedding)
    assert all(torch.equal(both[1].weights[name], weight) for name, weight in state.weights.items())
    assert not all(torch.equal(both[0].weights[name], weight) for name, weight in state.weights.items())
