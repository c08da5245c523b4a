"""trm.plan: counting, arithmetic, refusals, and a real ahead-of-time compile for a v4-64 where jax and libtpu are installed."""

import dataclasses

import analytic_flops
import pytest
from analytic_flops import analytic_eval_flops, analytic_train_flops
from running import refused, run
from sweeping import children, is_gone, start, stopped, wait_for

from trm.cli import compose, compose_jobs
from trm.config import HardwareConfig
from trm.core import flops
from trm.core.flops import count_eval_flops, count_train_flops, network_flops, passes, train_arguments, training_flops
from trm.core.recursion import stages
from trm.errors import ConfigError, RunFailure
from trm.plan import aot
from trm.plan import compiled as planning
from trm.plan.__main__ import estimates, main
from trm.plan.compiled import Compiled, Compiler, TooBig, checked, find_python, warnings
from trm.plan.output import RunPlan, _compiled_lines, quantity, sweep_lines
from trm.plan.settings import split_arguments
from trm.plan.workload import (
    V4,
    StepTimes,
    all_reduce_seconds,
    architecture_of,
    estimate,
    evaluation_puzzles,
    makespan,
    step_config,
    table_rows_bytes,
    topology,
    workload,
)
from trm.show.table import named

TINY = ["data=sudoku_4x4", "model=tiny", "recursion=t2_n2", "hardware=v4_64", "train.global_batch_size=64"]
POD = HardwareConfig(name="v4_64", platform="tpu", num_hosts=8, devices_per_host=4, dtype="bfloat16", loss_dtype="float32")


def tiny(*overrides):
    return compose([*TINY, *overrides, "run_name=r"])


def test_plan_keys_are_split_from_the_run_s():
    settings, rest, multirun = split_arguments(
        ["experiment=e1_1_baseline", "plan.compile=true", "plan.utilisation_percent=[10,50]", "+sweep=x"]
    )
    assert settings.compile
    assert settings.utilisation_percent == [10, 50]
    assert not multirun
    assert rest == ["experiment=e1_1_baseline", "+sweep=x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan.compil=true"], "plan.compil is not a key of trm.plan: did you mean plan.compile?"),
        (["plan.x=1"], "plan.x is not a key of trm.plan: they are plan.compile"),
        (["plan.compile=maybe"], "plan.compile"),
        (["plan.utilisation_percent=[0]"], "plan.utilisation_percent=[0.0]"),
        (["plan.utilisation_percent=[]"], "plan.utilisation_percent"),
        (["plan.price_per_chip_hour=-1"], "plan.price_per_chip_hour=-1.0"),
        (["plan.host_ms_per_step=nan"], "plan.host_ms_per_step=nan"),
        (["e1_1_baseline"], "e1_1_baseline: not understood"),
        (["--cfg=job"], "arguments: --cfg=job"),
        (["hardware=cpu"], "hardware=cpu is no TPU"),
        (["hardware=v4_64", "+sweep=nope"], "sweep=nope is not an option"),
        (["hardware=v4_64", "optimizer.lrr=1"], "optimizer.lrr is not a config key"),
        (["hardware=v4_64", "plan.compile=true", "plan.python=/no/python"], "plan.python=/no/python: No such file"),
        (
            ["hardware=v4_64", "plan.compile=true", "inference.early_exit=true"],
            "inference.early_exit=true: plan.compile=true cannot",
        ),
        (
            ["hardware=v4_64", "plan.compile=true", "--multirun", "inference.early_exit=false,true"],
            "inference.early_exit=true: plan.compile=true cannot",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    refused(main, arguments, words)


def test_the_command_refuses_in_one_line(tmp_path):
    done = run(tmp_path, "trm.plan", *TINY, "plan.nope=1", check=2)
    assert done.stderr.count("\n") == 1
    assert "plan.nope" in done.stderr


def test_a_sweep_s_jobs_are_those_that_trm_train_would_run():
    """Named with a plus, as Hydra wants it, or without."""
    jobs = compose_jobs(["sweep=tn_sweep", "hardware=v4_64", "seed=1"])
    assert sorted((cfg.recursion.T, cfg.recursion.n, cfg.seed) for cfg in jobs.values()) == [
        *((2, 2, 1), (2, 6, 1), (3, 4, 1), (3, 6, 1), (4, 6, 1)),
    ]
    assert {cfg.hardware.placement for cfg in jobs.values()} == {"chip"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["recursion.T=3", "recursion.n=1", "model.separate_networks=true"],
        ["model.mixer=attention", "model.positions=rope", "recursion.variant=multi_scale_z"],
        ["model.num_layers=3", "model.positions=learned", "recursion.act_continue=true"],
        ["recursion.variant=one_step_gradient", "model.puzzle_emb_ndim=0", "model.puzzle_emb_len=0"],
        ["recursion.variant=single_z"],
        ["recursion.variant=single_state", "model.mixer=attention", "model.positions=rope", "model.mlp=conv_swiglu"],
        ["recursion.damping=0.9", "recursion.noise=0.1", "latents.init=random", "model.registers=2"],
        ["latents.num_hypotheses=3", "recursion.T=2", "recursion.n=3"],
        ["latents.num_hypotheses=2", "recursion.variant=one_step_gradient", "recursion.n=3"],
    ],
    ids=",".join,
)
def test_the_graph_s_flops_are_the_analytic_ones(overrides):
    cfg = tiny(*overrides)
    arch = architecture_of(cfg)
    assert network_flops(cfg, step_config(cfg)) == pytest.approx(analytic_train_flops(cfg, arch), rel=1e-3)
    assert passes(arch) == analytic_flops.passes(cfg)
    assert count_eval_flops(cfg, arch, cfg.eval_batch_size) == pytest.approx(analytic_eval_flops(cfg, arch), rel=1e-3)


def test_the_paper_s_sample_takes_43_gflop():
    cfg = compose(["experiment=paper_t3_n6", "hardware=v4_64"])
    assert network_flops(cfg, step_config(cfg)) / 768 == pytest.approx(43e9, rel=0.01)
    assert passes(architecture_of(cfg)) == (14, 7)


def test_the_flops_of_a_run_are_those_of_its_stages_up_to_where_it_is():
    cfg = tiny("recursion.T=3", "recursion.n=2", "recursion.curriculum=[{until: 0.5, T: 1, n: 1}]")
    arch, parts = architecture_of(cfg), stages(cfg.recursion, 100)
    shallow, deep = (network_flops(each := dataclasses.replace(cfg, recursion=part.recursion), step_config(each)) for part in parts)
    assert 2 * shallow < deep
    assert [training_flops(cfg, arch, parts, steps) for steps in (0, 30, 50, 60, 100)] == [
        *(0, 30 * shallow, 50 * shallow, 50 * shallow + 10 * deep, 50 * (shallow + deep)),
    ]


def test_neither_the_optimizer_nor_what_is_computed_twice_counts_as_training():
    maze = ["data=maze_small", "model=tiny_attention", "recursion.T=1", "recursion.n=1"]
    cfg = tiny(*maze, "hardware.attention=scores")
    assert network_flops(cfg, step_config(cfg)) == count_train_flops(cfg, step_config(cfg))
    for more in ("hardware.attention=blocks", "optimizer=muon"):
        other = tiny(*maze, "hardware.attention=scores", more)
        assert network_flops(other, step_config(other)) == network_flops(cfg, step_config(cfg))
        assert count_train_flops(other, step_config(other)) > network_flops(cfg, step_config(cfg))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (1000, 1000, False)),
        (["data.num_test_puzzles=64"], (64, 64, False)),
        (["evaluate.max_puzzles=10"], (10, 10, False)),
        (["data.num_test_puzzles=64", "evaluate.max_puzzles=100"], (64, 64, False)),
        (["data=sudoku_extreme"], (10_000, 422_786, True)),
        (["data=sudoku_extreme", "evaluate.max_puzzles=1000"], (1000, 1000, False)),
        (["data=arc_agi_1"], (419 * 32, 419 * 32, False)),
        (["data=arc_agi_1", "evaluate.max_puzzles=40"], (42 * 32, 42 * 32, False)),  # test inputs in the mean
        (["data=arc_agi_1", "evaluate.max_puzzles=1000", "evaluate.max_variants=4"], (419 * 4, 419 * 4, False)),
    ],
)
def test_puzzles_of_an_evaluation(overrides, expected):
    assert evaluation_puzzles(tiny(*overrides)) == expected


def test_evaluations_of_a_run_are_counted(monkeypatch):
    for count in ("count_train_flops", "count_eval_flops"):  # which take longest
        monkeypatch.setattr(f"trm.plan.workload.{count}", lambda *_: 1)
    work = workload(tiny("train.max_steps=25", "train.eval_every_steps=10", "data.num_test_puzzles=65", "recursion.n_sup=4"))
    assert work.evaluations == 3  # after 10, 20 and 25 steps
    assert work.selection_puzzles == 65
    assert work.eval_calls == 3 * (2 + 2) * 4  # two batches of 64 test and of 64 selection puzzles, four supervision steps
    for few, count in ((0, 0), (7, 7), ("null", 65)):
        data = ["data.num_test_puzzles=65", f"evaluate.selection_puzzles={few}"]
        assert workload(tiny("train.max_steps=25", *data)).selection_puzzles == count
    assert workload(tiny("data=sudoku_extreme", "train.max_steps=25")).selection_puzzles == 0


def test_jobs_that_differ_in_length_and_seed_alone_are_counted_once(monkeypatch):
    counted, counts = [], {name: getattr(flops, name) for name in ("depth_flops", "count_train_flops", "count_eval_flops")}
    for name, count in counts.items():
        monkeypatch.setattr(f"trm.plan.workload.{name}", lambda *of, count=count: counted.append(count) or count(*of))
    once, again, longer = (
        workload(tiny(f"train.max_flops={budget}", f"seed={seed}")) for budget, seed in ((1e11, 0), (1e11, 1), (4e11, 0))
    )
    assert counted == list(counts.values())
    assert once == again
    assert longer.train_steps == pytest.approx(4 * once.train_steps, abs=4)
    assert workload(tiny("train.max_flops=1e11", "model.hidden_size=32")).train_flops != once.train_flops
    assert len(counted) == 6


def test_topologies():
    assert [topology(dataclasses.replace(POD, placement=placement)) for placement in ("chip", "host", "pod", None)] == [
        *("v4:2x2x1", "v4:2x2x1", "v4:2x4x4", "v4:2x4x4"),
    ]


def test_estimates_of_a_run():
    work = workload(tiny())
    work = dataclasses.replace(work, train_flops=int(275e12), eval_flops=int(27.5e12), train_steps=3600, eval_calls=36000)
    chip, host, pod = (estimate(work, dataclasses.replace(POD, placement=placement), 0.0) for placement in ("chip", "host", "pod"))
    assert [e.chips for e in (chip, host, pod)] == [1, 4, 32]
    assert [e.jobs_at_once for e in (chip, host, pod)] == [32, 8, 1]
    assert [e.rows_per_chip for e in (chip, host, pod)] == [64, 16, 2]
    assert chip.train_step.arithmetic == pytest.approx(1)
    assert chip.hours(1.0) == pytest.approx(2)  # an hour of training and one of evaluation
    assert chip.hours(0.5) == pytest.approx(4)
    assert pod.hours(0.5) - pod.eval_hours(0.5) == pytest.approx(2 / 32)
    assert chip.train_step.links == 0
    with pytest.raises(ConfigError, match="does not divide over 32 devices"):
        estimate(dataclasses.replace(work, global_batch=100), POD, 0.0)


def test_a_step_is_bound_by_its_longest_part():
    times = StepTimes(arithmetic=1.0, memory=2.0, links=0.5, host=1.5)
    assert (times.roofline, times.bound_by) == (2.0, "memory")
    assert times.at(0.5) == 2.0
    assert times.at(0.25) == 4.0  # a lower utilisation stretches the arithmetic alone


def test_an_all_reduce_on_one_chip_takes_no_time():
    assert all_reduce_seconds(1e9, 1, V4) == 0
    assert all_reduce_seconds(300e9, 2, V4) == pytest.approx(1)


@pytest.mark.parametrize(
    ("hours", "slots", "expected"), [([1, 2, 3], 1, 6), ([1, 2, 3], 3, 3), ([3, 1, 1, 1], 2, 3), ([1, 1, 3], 2, 4), ([5], 32, 5)]
)
def test_hours_of_a_sweep(hours, slots, expected):
    assert makespan(hours, slots) == expected


def test_words():
    assert quantity(1.0935e13, "FLOP") == "10.94 TFLOP"
    assert quantity(12, "B") == "12 B"
    assert named([{"a": "long", "b": "1"}, {"a": "x"}]) == ["a     b", "long  1", "x     -"]


def compiled(**changes):
    reduce = [{"op": "all-reduce", "bytes": 100, "dtypes": {"f32": 100}}]
    memory = {"arguments": 10, "outputs": 8, "aliased": 6, "temporaries": 5, "code": 3}
    whole = Compiled(1.0, 32, "TPU v4", "0.0.21", memory, 1e9, 1e9, reduce, 32, 5, 5, 0)
    return dataclasses.replace(whole, **changes)


def test_collectives_are_read_from_the_compiled_module():
    hlo = """HloModule m, num_partitions=32
  %all-reduce.1 = (bf16[11,512]{1,0:T(8,128)(2,1)S(3)}, f32[]{:T(128)}) all-reduce(%a, %b), channel_id=64
  ROOT %all-gather.2 = u32[32]{0} all-gather-start(%c), dimensions={0}
  %get = f32[8]{0} get-tuple-element(%all-reduce.1), index=0
"""
    assert aot.collectives(hlo) == [
        {"op": "all-reduce", "bytes": 2 * 11 * 512 + 4, "dtypes": {"bf16": 2 * 11 * 512, "f32": 4}},
        {"op": "all-gather", "bytes": 128, "dtypes": {"u32": 128}},
    ]


def test_a_sweep_s_table_has_what_was_compiled_for_each_job():
    settings, *_ = split_arguments(["plan.utilisation_percent=[40]"])
    cfg = tiny("hardware.placement=chip")
    work = workload(cfg)
    found = {"training": compiled(), "evaluation": too_big("Used 48G of 30G hbm")}
    header, row = sweep_lines("two", [RunPlan("a", cfg, work, estimates(work, cfg, settings), found)], settings)[1:3]
    assert " ".join(header.split()).endswith(
        "training MiB/chip training all-reduce bytes evaluation MiB/chip evaluation all-reduce bytes"
    )
    assert row.split()[-5:] == ["0", "100", "too", "big", "-"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"collectives": []}, "holds no all-reduce"), ({"partitions": 1}, "1 partitions"), ({"devices": 4}, "4 devices")],
)
def test_a_module_that_ignores_the_chips_is_refused(changes, words):
    with pytest.raises(RunFailure, match=words):
        checked(compiled(**changes), 32)
    assert checked(compiled(), 32) == compiled()
    assert compiled().memory_bytes == 20


def test_what_a_compiled_step_is_warned_of():
    assert warnings(compiled(), 100) == []
    assert warnings(compiled(), None) == []
    gathered = [{"op": "all-reduce", "bytes": 100, "dtypes": {}}, {"op": "all-gather", "bytes": 7, "dtypes": {}}]
    found = warnings(compiled(collectives=gathered, aliases=3, float64_values=2), 50)
    assert len(found) == 4
    for words, text in zip(("2 float64", "2 of 5 donated", "carry 7 bytes", "2.0 times"), found, strict=True):
        assert words in text
    assert warnings(compiled(collectives=gathered[1:]), 50, table_rows_bytes=7) == []


@pytest.mark.parametrize(("rows", "words"), [(6, 0), (2, 2 * (512 + 2) * 4)])
def test_of_a_puzzle_embedding_larger_than_the_batch_its_rows_may_be_gathered(rows, words):
    cfg = tiny(f"train.global_batch_size={rows}", "model.puzzle_emb_ndim=512", "hardware=cpu_xla")
    arch = dataclasses.replace(architecture_of(cfg), num_puzzle_identifiers=4)
    assert table_rows_bytes(train_arguments(cfg, arch)[0][0].puzzle_embedding, rows) == words


def too_big(message, there=int(30.75 * 2**30)):
    return TooBig(message, there, 768, 32)


@pytest.mark.parametrize(
    ("message", "needed", "fits"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 61.50G of 30.75G hbm. Exceeded", 61.5 * 2**30, 384),
        ("Used 1.5T of 30.75G hbm", 1.5 * 2**40, 0),
        ("another message", None, 0),
    ],
)
def test_what_is_said_of_a_step_that_does_not_fit(message, needed, fits):
    found = too_big(message)
    assert (found.needed, found.fits) == (needed, fits)
    line, words = _compiled_lines("training", found, None, V4)
    assert ("batch of 384 should fit" in line) == bool(fits)
    assert words.strip() == message


@pytest.fixture
def plan_python(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # those of `make test-long` are for a CPU
    try:
        return find_python(None)
    except ConfigError as error:
        pytest.skip(str(error))


def compiled_for_a_v4_64(python, folder, dtype, step):
    """The workload, and what the compiler says of the step, which without float64 goes to all chips and fits into them."""
    cfg = tiny(f"hardware.dtype={dtype}")
    found = Compiler(python, folder, print, 1).compile(cfg, step, "a run")
    assert isinstance(found, Compiled)
    assert (found.devices, found.partitions, found.device_kind) == (32, 32, "TPU v4")
    assert found.float64_values == 0
    assert 0 < found.memory_bytes < V4.memory_bytes
    return workload(cfg), found


def floats_reduced(found):
    """Floating-point numbers that the all-reduces carry, whatever their width."""
    return sum(size // aot.BYTES[dtype] for item in found.collectives for dtype, size in item["dtypes"].items() if "f" in dtype)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_training_step_compiles_for_a_v4_64(plan_python, tmp_path, dtype):
    work, found = compiled_for_a_v4_64(plan_python, tmp_path, dtype, "training")
    assert {item["op"] for item in found.collectives} == {"all-reduce"}
    # the gradient goes over the links once, beside a few scalars that the metrics sum: at most four
    assert 0 <= floats_reduced(found) - work.gradient_bytes // 4 <= 4
    # in float32 even where the passes compute in bfloat16, but for the token embedding and the heads, which are used once in a step
    narrow = sum(item["dtypes"].get("bf16", 0) for item in found.collectives)
    assert narrow == 0 if dtype == "float32" else narrow < work.gradient_bytes / 100
    assert found.donated == found.aliases > 40
    assert found.flops * 32 == pytest.approx(work.train_flops, rel=0.2)  # the compiler counts elementwise work too
    assert found.memory["aliased"] > work.state_bytes
    assert warnings(found, work.gradient_bytes) == []


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_evaluation_step_compiles_for_a_v4_64(plan_python, tmp_path, dtype):
    work, found = compiled_for_a_v4_64(plan_python, tmp_path, dtype, "evaluation")
    assert found.donated == 0  # weights and the empty carry serve every batch
    assert found.flops * 32 == pytest.approx(work.eval_flops, rel=0.2)
    # the links carry sums and the puzzles that are shown, neither weights nor latents
    assert sum(item["bytes"] for item in found.collectives) < work.weight_bytes / 50
    assert warnings(found, None) == []


def test_a_plan_that_is_stopped_prints_what_is_known_and_leaves_no_process(tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {aot.JAX_VERSION}\n")
    python.chmod(0o755)
    process = start(tmp_path, *TINY, "plan.compile=true", f"plan.python={python}", command=("-m", "trm.plan"))
    assert process.stderr.readline() == "tracing the training step of run ...\n"
    wait_for(lambda: children(process))
    (child,) = children(process)
    code, out, err = stopped(process)
    assert code == 130
    assert err == "stopped: programs compiled: 0 of 2\n"
    for words in ("parameters", "chip", "host", "pod*", "Assumed: TPU v4"):
        assert words in out
    assert "step compiled" not in out
    wait_for(lambda: is_gone(child))


def test_a_long_compilation_says_how_long_it_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "TELL_EVERY_S", 0.1)
    lines = []
    compiler = Compiler("python", tmp_path, lines.append, 4)
    for _ in range(2):
        compiler._run_child(["sleep", "0.15"], "compiling it")
        compiler.done += 1
    assert lines == [
        "compiling it: 00:00; 0 of 4 programs are done",
        "compiling it: 00:00; 1 of 4 programs are done, about 00:00 left",
    ]
    with pytest.raises(RunFailure, match=r"compiling it failed \(exit code 3\): no chip"):
        compiler._run_child(["sh", "-c", "echo no chip >&2; exit 3"], "compiling it")


def test_the_command_prints_a_whole_plan(tmp_path):
    done = run(tmp_path, "trm.plan", *TINY, "--multirun", "train.max_flops=1e13,1e14", "plan.price_per_chip_hour=2")
    for words in ("2 jobs", "chip*", "host", "pod", "price at 40 %", "Assumed: TPU v4"):
        assert words in done.stdout
    assert sum(line.strip().startswith("max_flops=") for line in done.stdout.splitlines()) == 2
    assert not list(tmp_path.iterdir())
    done = run(tmp_path, "trm.plan", *TINY, "train.global_batch_size=6", "hardware.placement=chip")
    assert "pod: train.global_batch_size=6 does not divide over 32 devices" in done.stdout
