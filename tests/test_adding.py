"""Adding is tested by adding: each test registers something from here alone, without a change in trm/, and runs with it."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import toy_task
from running import TINY, metrics, numbers, run, summary
from test_arc import RUN, source, task_json

import trm.backends
import trm.config.backends
from trm.cli import compose, compose_jobs
from trm.config import BACKENDS, TASKS, Backend, groups, load_yaml, register_schema
from trm.config.groups import CONF_DIR
from trm.core.flops import count_row_flops
from trm.core.initial import init_weights
from trm.core.metrics import METRICS, Metric
from trm.core.model import decode
from trm.core.optimizers import OPTIMIZERS, Optimizer
from trm.core.recursion import OwnWeight, Variant
from trm.core.variants import VARIANTS
from trm.errors import ConfigError
from trm.plan.workload import architecture_of

SMALL = [
    *TINY, "model.hidden_size=16", "train.checkpoint_every_steps=1", "train.eval_every_steps=null", "train.keep_checkpoints=9",
    "evaluate.max_puzzles=16", "evaluate.selection_puzzles=8", "recursion.T=1", "recursion.n=1",
]  # fmt: skip
PUZZLE = "1...|..1.|.1..|...1"
PAGE = toy_task.PAGE
BACKENDS_PAGE = (Path(__file__).parents[1] / "docs" / "explanation" / "backends.md").read_text(encoding="utf-8")
BACKEND = re.search(r"```python\n(# trm/backends/careful.py.*?)```", BACKENDS_PAGE, re.DOTALL)[1]

pytestmark = pytest.mark.usefixtures("undrawn")


def trains_resumes_solves_and_reports(folder, *overrides, tensors=(), puzzle=PUZZLE, register=lambda: None):
    """Three steps, an evaluation, checkpoints; a resumed run has the same bits; solved with and reported. The run folder.

    `register` is called between the first part of the resumed run and all else.
    """
    arguments = [*SMALL, *overrides]
    run(folder, "trm.train", *arguments, "train.max_steps=2", "run_name=parts")
    register()
    run(folder, "trm.train", *arguments, "train.max_steps=3", "run_name=whole")
    run(folder, "trm.train", *arguments, "train.max_steps=3", "run_name=parts")
    whole, parts = (folder / "outputs" / name / "checkpoints" / "step_3" / "state.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    header = whole.read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert set(tensors) <= names.keys()
    assert summary(folder / "outputs" / "whole")["last_eval_step"] == 3
    assert run(folder, "trm.solve", "checkpoint=outputs/whole", puzzle).stdout
    run(folder, "trm.report", "outputs")
    return folder / "outputs" / "whole"


def test_a_metric(tmp_path, monkeypatch, capsys):
    """Share of the cells left open by the question that are right; a run from before it was there goes on."""

    def open_accuracy(rows):
        is_open = rows.inputs != rows.labels
        return (rows.right & is_open).sum(-1) / is_open.sum(-1).clamp_min(1)

    def register():
        monkeypatch.setitem(METRICS, "open_accuracy", Metric(open_accuracy, shown=True))

    folder = trains_resumes_solves_and_reports(tmp_path, "tracking=tensorboard", "train.log_every_steps=1", register=register)
    resumed = (tmp_path / "outputs" / "parts" / "train.log").read_text().partition("resuming from")[2]
    assert "open_accuracy=" in resumed  # in the log of the evaluation
    (evaluation,) = metrics(folder, "eval")
    value = evaluation["open_accuracy"]
    assert 0 < value < 1
    assert value != evaluation["accuracy"]
    assert summary(folder)["last_eval"]["open_accuracy"] == value
    for file in ("report.csv", "report.json", "index.html"):
        assert "open_accuracy" in next((tmp_path / "outputs").rglob(file)).read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert events.Scalars("eval/open_accuracy")[-1].value == torch.tensor(value).item()


@pytest.mark.parametrize(
    ("name", "of", "words"),
    [
        ("cells", lambda rows: rows.right, "METRICS['cells'] gives an array [16, 16], not [16]: give one number for each row"),
        ("mean", lambda rows: rows.exact.float().mean(), "METRICS['mean'] gives an array [], not [16]"),
        ("count", lambda rows: rows.exact, "METRICS['count']: a step has a sum of this name: rename the metric"),
    ],
)
def test_a_metric_that_cannot_be_averaged_is_refused(tmp_path, monkeypatch, name, of, words):
    monkeypatch.setitem(METRICS, name, Metric(of))
    assert words in run(tmp_path, "trm.train", *SMALL, "train.max_steps=1", "run_name=r", check=2).stderr


def test_an_optimizer_that_returns_other_tensors_is_refused(tmp_path, monkeypatch):
    rule = OPTIMIZERS["adamw"]
    monkeypatch.setitem(OPTIMIZERS, "forgets", rule._replace(update=lambda *given: (rule.update(*given)[0], {})))
    given = [*SMALL, "train.max_steps=1", "run_name=r", "optimizer.name=forgets"]
    told = run(tmp_path, "trm.train", *given, check=2).stderr
    assert "optimizer.name=forgets: its update changes the name or shape of m/" in told


def test_the_optimizer_and_the_metric_of_the_page_on_extending(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
    rule, metric = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setitem(OPTIMIZERS, "lion", None)  # is removed after the test
    exec(compile(rule, "lion.py", "exec", dont_inherit=True), {"__name__": "lion"})
    names = {"Metric": Metric}
    exec(f"added = {{{metric}}}", names)
    for name, value in names["added"].items():
        monkeypatch.setitem(METRICS, name, value)
    settings = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1].replace(": ", "=").split()
    given = [*SMALL, "train.max_steps=2", "run_name=r", *(f"optimizer.{setting}" for setting in settings)]
    run(tmp_path, "trm.train", *given)
    assert 0 <= summary(tmp_path / "outputs" / "r")["last_eval"]["open_accuracy"] <= 1


def test_a_recursion_variant_with_a_gate_and_a_halting_head(tmp_path, monkeypatch):
    """Weights, their initial values, a head and a halting rule of its own, counted in parameters and FLOPs."""

    def latent_recursion(networks, latents, x, n):
        z_H, z_L, gate = latents["z_H"], latents["z_L"], torch.sigmoid(networks.own["gate"].to(x.dtype))
        for _ in range(n):
            z_L = networks.f_L(z_L + gate * (z_H + x), z_L)
        return {"z_H": networks.f_H(z_H + z_L, z_H), "z_L": z_L}

    def own_heads(arch, weights, answer):
        logits, _, _ = decode(
            dataclasses.replace(arch, recursion=dataclasses.replace(arch.recursion, variant="trm")), weights, answer
        )
        surprise = (answer.mean(dim=1) @ weights["variant.halting"].to(answer.dtype)).mean(-1).to(arch.master_dtype)
        return logits, surprise, torch.zeros_like(surprise)

    def weights(arch):
        D = arch.model.hidden_size
        return {"gate": OwnWeight((D,), lambda shape: torch.full(shape, 2.0)), "halting": OwnWeight((D, D))}

    added = Variant(
        lambda n: ("z_H", "z_L"),
        latent_recursion,
        weights=weights,
        decode=own_heads,
        halting_logit=lambda recursion, q_halt, q_continue: q_halt - 1.0,
    )
    monkeypatch.setitem(VARIANTS, "gated", added)
    tensors = [f"{kind}/variant.{name}" for kind in ("weights", "ema", "optimizer/m") for name in ("gate", "halting")]
    folder = trains_resumes_solves_and_reports(tmp_path, "recursion.variant=gated", tensors=tensors)
    parameters, flops = {}, {}
    for name in ("trm", "gated"):
        cfg = compose([*SMALL, "run_name=r", f"recursion.variant={name}"])
        arch = architecture_of(cfg)
        parameters[name] = sum(weight.numel() for weight in init_weights(arch, 0).values())
        flops[name] = count_row_flops(cfg, arch)
    assert summary(folder)["parameters"] == parameters["gated"] == parameters["trm"] + 16 + 16 * 16
    assert flops["gated"] > flops["trm"]


def test_an_optimizer_with_three_buffers(tmp_path, monkeypatch):
    """Lion with a slow copy of the weights and a count of sign changes."""

    def init(cfg, weights):
        zeros = {name: torch.zeros_like(w) for name, w in weights.items()}
        return {"momentum": zeros, "slow": {name: w.clone() for name, w in weights.items()}, "flips": dict(zeros)}

    def update(cfg, weights, buffers, grads, step, lr):
        new, momentum, slow, flips = {}, {}, {}, {}
        for name, w in weights.items():
            direction = torch.sign(cfg.beta1 * buffers["momentum"][name] + (1 - cfg.beta1) * grads[name])
            new[name] = w * (1 - lr * cfg.weight_decay) - lr * direction
            momentum[name] = cfg.beta2 * buffers["momentum"][name] + (1 - cfg.beta2) * grads[name]
            slow[name] = 0.9 * buffers["slow"][name] + 0.1 * new[name]
            flips[name] = buffers["flips"][name] + (direction != torch.sign(momentum[name]))
        return new, {"momentum": momentum, "slow": slow, "flips": flips}

    monkeypatch.setitem(OPTIMIZERS, "lion", Optimizer(init, update))
    tensors = [f"optimizer/{name}/lm_head" for name in ("momentum", "slow", "flips")]
    trains_resumes_solves_and_reports(tmp_path, "optimizer.name=lion", tensors=tensors)


def test_a_backend(tmp_path, monkeypatch):
    """The eager one that can neither change a table in place nor have several devices: the file in docs/explanation/backends.md."""
    monkeypatch.setattr(trm.config.backends, "FOLDER", tmp_path)
    monkeypatch.setattr(trm.backends, "__path__", [*trm.backends.__path__, str(tmp_path)])
    monkeypatch.setitem(BACKENDS, "careful", BACKENDS["eager"])
    del BACKENDS["careful"]  # which the test's end does to what the file registers
    (tmp_path / "careful.py").write_text(BACKEND)
    assert not compose(["hardware.backend=careful", "run_name=r"]).hardware.can.in_place
    data = source(tmp_path / "s", {f"task{i}": task_json(2 + i, 3, seed=i) for i in range(4)})  # more puzzles than a batch
    often = ["train.eval_every_steps=3", "train.checkpoint_every_steps=1"]
    small = [*RUN, f"data.source_dir={data}", "data.path=data", *often, "recursion={T:1,n:1}"]
    careful = [*small, "hardware.backend=careful"]

    def train(name, steps, *arguments):
        done = run(tmp_path, "trm.train", *arguments, f"train.max_steps={steps}", f"run_name={name}", process=False)
        return done.stdout, tmp_path / "outputs" / name

    said, whole = train("whole", 3, *careful)
    assert " careful on one cpu device" in said
    train("parts", 2, *careful)
    said, parts = train("parts", 3, *careful)
    assert summary(parts)["resumed_from_step"] == 2
    _, eager = train("eager", 3, *small)
    for other in (parts, eager):
        files = [folder / "checkpoints" / "step_3" for folder in (whole, other)]
        assert len({path.name for path in files[0].glob("*.safetensors")}) == 2  # the puzzle embedding has a file of its own
        for path in files[0].glob("*.safetensors"):
            assert path.read_bytes() == (files[1] / path.name).read_bytes(), path.name
        for kind in ("train", "eval"):
            assert numbers(whole, kind)[-1] == numbers(other, kind)[-1]
    run(tmp_path, "trm.report", "outputs")


def test_a_backend_is_asked_what_it_can_do(monkeypatch):
    monkeypatch.setitem(BACKENDS, "careful", BACKENDS["eager"])
    monkeypatch.setitem(BACKENDS, "one_host", Backend("nowhere:Class", ("tpu",), multi_device=True))
    small = ["run_name=r", "hardware.loss_dtype=float32"]
    for overrides, words in (
        ("hardware.devices_per_host=2 hardware.backend=careful", "hardware.backend=careful runs on one device"),
        (
            "hardware.backend=careful hardware.platform=tpu",
            "set hardware.backend=xla or one_host, or hardware.platform=cpu",
        ),
        ("hardware.platform=tpu hardware.backend=one_host hardware.num_hosts=2", "hardware.backend=one_host runs on one host"),
        ("hardware.platform=tpu hardware.backend=one_host hardware.loss_dtype=float64", "has no float64 on hardware.platform=tpu"),
        ("hardware.platform=tpu hardware.backend=one_host hardware.compile_cache=x", "keeps no compiled graphs"),
        ("hardware.backend=none_such", "hardware.backend=none_such is not one of xla, eager, inductor, careful, one_host"),
        ("hardware.backend=machine", "hardware.backend=machine is not one of xla"),  # a file of trm/backends that is no backend
        ("hardware.backend=../x", "hardware.backend=../x is not one of xla"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            compose([*small, *overrides.split()])


# ------------------------------------------------------------------------------------------- a task that is outside the package

DATA = [f"data.{key}={value}" for key, value in toy_task.SETTINGS.items() if key != "path"]


@pytest.fixture
def sums(tmp_path, monkeypatch):
    """The task of docs/tutorials/your_own_task.md as the module sums of the current folder, and unknown again after the test."""
    (tmp_path / "sums.py").write_text(toy_task.CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    TASKS.pop("sums:Sums", None)
    sys.modules.pop("sums", None)
    register_schema()


def test_a_task(sums):
    """Clues stand in the margin, sums from 10 on are letters; it has two settings of its own, and a score."""
    data = [*DATA, "data.share=0.6", "data.path=data", "evaluate.best_by=sums"]
    (question,), (answer,) = toy_task.Sums(4, 0.6).generate(1, 0)
    text = toy_task.Sums(4).view.text(question)
    assert set(text) & set("A")
    folder = trains_resumes_solves_and_reports(sums, *data, puzzle=text)
    assert toy_task.Sums(4).violations(question, answer) == []
    settings = load_yaml(folder / "config.yaml").data
    assert (settings.task, settings.side, settings.share) == ("sums:Sums", 4, 0.6)
    assert "box_rows" not in settings
    assert summary(folder)["best_scores"].keys() == {"sums"}
    evaluated = run(sums, "trm.evaluate", "checkpoint=outputs/whole").stdout
    assert "sums" in json.loads(evaluated.splitlines()[-1])
    other = run(
        sums, "trm.train", *SMALL, *data, "data.share=0.5", "data.path=other", "train.max_steps=3", "run_name=whole", check=2
    )
    assert "data.share=0.6 there, 0.5 here" in other.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("data.side=8", "data.side=8 is out of range: it must be at most 7"),
        ("data.share=1", "data.share=1.0 is out of range: it must be below 1"),
        ("data.side=x", "data.side=x: the value must be a whole number"),
        ("data.sides=3", "data.sides is not a config key: did you mean data.side?"),
        ("data.box_rows=3", "data.box_rows is a setting of data.task=sudoku alone"),
        ("data.canvas=4", "data.canvas is a setting of data.task=arc and data.task=maze alone"),
        ("data.task=maze data.side=4", "data.side is a setting of data.task=sums:Sums alone"),
        ("data.task=nowhere:Task", "data.task=nowhere:Task cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        ("data.task=sums:None_such", "data.task=sums:None_such cannot be imported (AttributeError"),
        ("data.task=sums:Settings", "data.task=sums:Settings is not a task: name a class that is derived from trm.tasks.base.Task"),
        ("data.task=sums", "data.task=sums is unknown: choose one of arc, maze, sudoku, sums:Sums, or write"),
    ],
)
def test_what_a_task_refuses(sums, overrides, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        compose(["run_name=r", "data=sudoku_4x4", *DATA, *overrides.split()])
    assert "\n" not in str(caught.value)


def test_a_setting_of_all_tasks_cannot_be_one_of_a_task(sums):
    (sums / "sums.py").write_text(toy_task.CODE.replace("share: float", "num_aug: float"))
    with pytest.raises(ConfigError, match=r"defines the setting num_aug, but all tasks have data\.num_aug: rename it"):
        compose(["run_name=r", *DATA])


def test_a_dataset_of_a_task_outside_the_package_is_an_option(sums, monkeypatch):
    """Of the page's YAML as a file of conf/data, with the path that it makes from settings and their defaults."""
    shutil.copytree(CONF_DIR, sums / "conf")
    option = PAGE[PAGE.index("# conf/data/sums.yaml") :].partition("```")[0]
    (sums / "conf" / "data" / "sums.yaml").write_text(option.replace("side: 4\n", ""))
    monkeypatch.setattr(groups, "CONF_DIR", sums / "conf")
    cfg = compose(["data=sums", "run_name=r", "data.num_puzzles=9"])
    assert (cfg.data.path, cfg.data.side, type(cfg.data).__name__) == ("data/sums_4_n9_seed0", 4, "Settings")
    assert compose(["data=sums", "data.side=5", "run_name=r"]).data.path == "data/sums_5_n1000_seed0"
    assert len(compose_jobs(["data=sums,maze_small", "run_name=r"])) == 2
    assert not hasattr(
        compose(["experiment=maze_small", "recipe=tiny", "data=sudoku_6x6", "run_name=r"]).data, "canvas"
    )  # which the experiment sets
