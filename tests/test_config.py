"""The settings' border: what composes, what is refused and in which words, and what identifies a run."""

import dataclasses
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trm.cli import compose
from trm.config import (
    TASKS,
    Config,
    DataConfig,
    Phase,
    all_keys,
    differences,
    digest,
    from_plain,
    keys_of,
    numerics,
    resume_conflicts,
    shortened,
    to_plain,
    total_steps,
    validate,
)
from trm.config.groups import CONF_DIR, GROUPS
from trm.errors import ConfigError

# test_experiments.py composes every experiment and sweep, test_inference.py every way of inference, which not all tasks have
PARTS = [group for group in GROUPS if group not in ("experiment", "sweep", "inference")]


@pytest.fixture(scope="module")
def default():
    return compose(["run_name=r"])


def changed(cfg, **keys):
    """A copy of the config with GROUP__KEY=VALUE replaced, without composing again."""
    for name, value in keys.items():
        *groups, key = name.split("__")
        if groups:
            value = dataclasses.replace(getattr(cfg, groups[0]), **{key: value})
            key = groups[0]
        cfg = dataclasses.replace(cfg, **{key: value})
    return cfg


def with_values(cfg, values):
    """The config with KEY: VALUE replaced, validated without composing, which is much slower."""
    cfg = changed(cfg, **{key.replace(".", "__"): value for key, value in values.items()})
    validate(cfg)
    return cfg


def of_its_task(cfg, key):
    """The config, with the data settings of a task that has this key."""
    name = key.removeprefix("data.")
    if key == name or hasattr(cfg.data, name):
        return cfg
    task, kind = next((task, kind) for task, kind in TASKS.items() if name in keys_of(kind))
    common = {each: getattr(cfg.data, each) for each in keys_of(DataConfig, known=False)} | {"task": task}
    return dataclasses.replace(cfg, data=kind(**common))


def refused_values(cfg, values):
    """The one line with which these values are refused."""
    with pytest.raises(ConfigError) as caught:
        with_values(cfg, values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def refusal(*overrides):
    """The one line with which these overrides are refused."""
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides))
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# what composes -----------------------------------------------------------------------------------------------------------------


def rounds():
    """Overrides that choose an option of every group, until every option of every group was chosen."""
    options = {group: [path.stem for path in sorted((CONF_DIR / group).glob("[!_]*.yaml"))] for group in PARTS}
    assert all(options.values())
    for i in range(max(map(len, options.values()))):
        yield {group: names[i % len(names)] for group, names in options.items()}


NUM_DEVICES = {"cpu": 1, "cpu_mesh": 8, "v4_8": 4, "v4_64": 32, "cpu_xla": 1, "cpu_bf16": 1, "gpu": 1, "gpus": 1, "cpu_ranks": 2}


@pytest.mark.parametrize("chosen", list(rounds()), ids=lambda chosen: "-".join(chosen.values()))
def test_every_option_composes(chosen):
    cfg = compose([*(f"{group}={option}" for group, option in chosen.items()), "run_name=r"])
    assert isinstance(cfg, Config)
    assert cfg.data.name == chosen["data"]
    assert cfg.hardware.name == chosen["hardware"]
    assert cfg.hardware.devices == NUM_DEVICES[chosen["hardware"]]
    assert cfg.hardware.dtype == ("bfloat16" if cfg.hardware.platform != "cpu" or "bf16" in chosen["hardware"] else "float32")
    assert cfg.optimizer.name == chosen["optimizer"]
    assert cfg.ema.enabled == (chosen["ema"] == "on")
    assert f"t{cfg.recursion.T}_n{cfg.recursion.n}" == chosen["recursion"]
    assert cfg.model.mixer == ("attention" if "attention" in chosen["model"] else "mlp")


def test_the_default_is_the_papers_recipe(default):
    cfg = default
    assert (cfg.recursion.T, cfg.recursion.n, cfg.recursion.n_sup, cfg.recursion.variant) == (3, 6, 16, "trm")
    assert cfg.recursion.halt_exploration_prob == 0.1
    assert not cfg.recursion.act_continue
    assert (cfg.model.mixer, cfg.model.hidden_size, cfg.model.num_layers, cfg.model.positions) == ("mlp", 512, 2, "none")
    assert (cfg.model.puzzle_emb_ndim, cfg.model.prefix_len, cfg.model.loss, cfg.model.rms_norm_eps) == (512, 16, "stablemax", 1e-5)
    assert (cfg.ema.enabled, cfg.ema.rate) == (True, 0.999)
    o = cfg.optimizer
    assert (o.name, o.lr, o.weight_decay, o.beta1, o.beta2, o.warmup_steps) == ("adam_atan2", 1e-4, 1.0, 0.9, 0.95, 2000)
    assert (o.schedule, o.puzzle_emb_lr, o.puzzle_emb_weight_decay) == ("constant", 1e-4, 1.0)
    assert (cfg.train.epochs, cfg.train.max_steps, cfg.train.checkpoint_every_steps) == (50000, None, 2500)
    assert (cfg.data.num_puzzles, cfg.data.on_the_fly_aug, cfg.data.num_aug) == (1000, 1000, 0)


def test_overrides_reach_their_keys():
    cfg = compose(["recursion.T=5", "optimizer.lr=3e-4", "train.max_steps=null", "tracking.tags=[a,b]", "seed=9", "ema=off"])
    assert (cfg.recursion.T, cfg.optimizer.lr, cfg.train.max_steps, cfg.seed) == (5, 3e-4, None, 9)
    assert cfg.tracking.tags == ["a", "b"]
    assert not cfg.ema.enabled


def test_a_dataset_folder_is_named_after_what_it_holds():
    paths = {
        compose(list(overrides)).data.path
        for overrides in ([], ["data.seed=1"], ["data.num_puzzles=500"], ["data.num_aug=7"], ["data=sudoku_4x4"])
    }
    assert len(paths) == 5


# what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # unknown keys
        ("recursion.t=1", ["recursion.t ", "recursion.T"]),
        ("++recursion.t=1", ["recursion.t "]),
        ("optimizer.weight_decey=1", ["optimizer.weight_decey ", "optimizer.weight_decay"]),
        ("sed=1", ["sed ", "did you mean seed?"]),
        ("+sed=1", ["sed ", "did you mean seed?"]),
        ("++train.max_step=1", ["train.max_step ", "did you mean train.max_steps?"]),
        ("bogus.key=1", ["bogus.key ", "--cfg job"]),
        ("+bogus.key=1", ["bogus", "--cfg job"]),
        ("model={mixr:mlp}", ["model.mixer"]),
        # values of another type
        ("model.hidden_size=wide", ["model.hidden_size", "wide"]),
        ("model.hidden_size=1.5", ["model.hidden_size", "1.5"]),
        ("model.hidden_size=null", ["model.hidden_size", "null"]),
        ("model.hidden_size=[1]", ["model.hidden_size", "[1]"]),
        ("model.separate_networks=perhaps", ["model.separate_networks", "perhaps"]),
        ("model.hidden_size=abc", ["model.hidden_size=abc: the value must be a whole number"]),
        ("seed=1e3", ["seed=1e3: the value must be a whole number"]),
        ("optimizer.lr=fast", ["optimizer.lr=fast: the value must be a number"]),
        ("train.global_batch_size=null", ["train.global_batch_size=null: the key needs a value"]),
        ("recursion.curriculum=[{until:0.5}]", ["recursion.curriculum[0]", "its entry has no T"]),
        ("m\u043edel=tiny", ["its key has '\\u043e', which is not an ASCII letter"]),
        ("seed=true", ["seed", "true"]),
        ("ema.enabled=3", ["ema.enabled", "true"]),
        ("tracking.tags=word", ["tracking.tags", "[...]"]),
        ("tracking.tags=[[a],b]", ["tracking.tags=[a,b]"]),
        ("tracking.notes=${data}", ["tracking.notes"]),
        # values out of range, and others that are none
        ("ema.rate=1", ["ema.rate=1", "is out of range", "must be"]),
        ("seed=-1", ["seed=-1", "is out of range", "must be"]),
        ("train.max_steps=99999999999", ["train.max_steps"]),
        ("model.expansion=0.001", ["model.expansion"]),
        ("run_name=", ["run_name"]),
        ("run_name=../elsewhere", ["run_name"]),
        ("hardware.compile_cache=cache", ["hardware.compile_cache"]),
        ("hardware.backend=xla hardware.platform=cuda", ["hardware.backend"]),
        # unknown choices
        ("recursion.variant=bogus", ["recursion.variant=bogus", "trm", "single_z", "multi_scale_z", "one_step_gradient"]),
        ("optimizer.name=bogus", ["optimizer.name=bogus", "adam_atan2", "adamw", "muon"]),
        ("hardware=bogus", ["hardware=bogus", *(path.stem for path in (CONF_DIR / "hardware").glob("[!_]*.yaml"))]),
        ("experiment=bogus", ["experiment=bogus", *(path.stem for path in (CONF_DIR / "experiment").glob("[!_]*.yaml"))]),
        ("model=3", ["model=3", "attention, deep, large, mlp, tiny"]),
        ("ema=true", ["ema=true", "off, on"]),
        # what does not parse
        ("seed", []),
        ("seed='1", []),
        ("seed=1,2", ["seed=1,2: the key has several values", "--multirun"]),
        ("data.path=${nope}", []),
        ("~model.mixer", []),
    ],
)
def test_an_override_is_refused_in_one_line_that_names_it(overrides, words):
    message = refusal(*overrides.split())
    for word in words:
        assert word in message


# W&B's fields, each with the longest text that it takes
FIELDS = {"project": 128, "entity": 128, "group": 128, "job_type": 64, "tags": 64}


@pytest.mark.parametrize("field", FIELDS)
def test_what_wandb_would_refuse_is_refused_before_anything_starts(default, field):
    def values(text):
        return {f"tracking.{field}": ["a", text] if field == "tags" else text}

    most = FIELDS[field]
    with_values(default, values("x" * most))
    bad = {"": "is empty", "  ": "is empty", "x" * (most + 1): f"{most} characters, not {most + 1}"}
    bad |= {f"a{c}b": f"leave out {c}" for c in "/#?%:"} if field in ("project", "entity") else {}
    for text, words in bad.items():
        message = refused_values(default, values(text))
        assert message.startswith(f"tracking.{field}")
        assert words in message
        with_values(default, values(text) | {"tracking.wandb": "disabled"})  # goes nowhere
    text = "[a,'']" if field == "tags" else "''"
    assert refusal(f"tracking.{field}={text}").startswith(f"tracking.{field}")


@settings(max_examples=40)
@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_names_of_this_programs_making_are_shortened_and_told_apart(one, other):
    assert len(shortened(one)) <= 128
    assert (shortened(one) == shortened(other)) == (one == other)


def numeric_keys(node=Config, prefix=""):
    for item in keys_of(node).values():
        if dataclasses.is_dataclass(item.type):
            yield from numeric_keys(item.type, f"{prefix}{item.name}.")
        elif any(item.metadata.get(bound) is not None for bound in ("low", "high", "above", "below")):
            yield prefix + item.name, item


def just_outside(item):
    """Values one step outside each bound of a key's range, with the word that the refusal uses for the bound."""
    whole = "int" in str(item.type)
    low, high, above, below = (item.metadata.get(bound) for bound in ("low", "high", "above", "below"))
    for bound, step, word in ((low, -1, "at least"), (high, 1, "at most"), (above, 0, "above"), (below, 0, "below")):
        if bound is not None:
            yield (int(bound) if whole else float(bound)) + step, word


OUTSIDE = [(key, value, word) for key, item in numeric_keys() for value, word in just_outside(item)]


def test_every_number_has_a_lower_bound():
    items = {key: item for key in all_keys() if (item := _field(key)) is not None}
    numbers = {key for key, item in items.items() if "int" in str(item.type) or "float" in str(item.type)}
    bounded = {key for key, item in numeric_keys() if {item.metadata.get(bound) for bound in ("low", "above")} != {None}}
    assert numbers == bounded


def _field(key):
    node = Config
    *groups, name = key.split(".")
    for group in groups:
        node = keys_of(node)[group].type
    item = keys_of(node)[name]
    return None if dataclasses.is_dataclass(item.type) else item


def test_out_of_range(default):
    """Just outside every bound of every key: the refusal names key, value and bound."""
    for key, value, word in OUTSIDE:
        message = refused_values(of_its_task(default, key), {key: [value] if _field(key).type == list[int] else value})
        assert f"{key}={value} is out of range" in message
        assert word in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_must_be_finite(default, value):
    for key in ("optimizer.lr", "model.rope_theta", "ema.rate"):
        assert f"{key}={value}" in refused_values(default, {key: float(value)})


@pytest.mark.parametrize(
    "key", ["model.mixer", "model.positions", "model.loss", "optimizer.others", "hardware.dtype", "train.resume"]
)
def test_choices_are_listed(default, key):
    message = refused_values(default, {key: "bogus"})
    assert f"{key}=bogus" in message
    for choice in _field(key).metadata["choices"]:
        assert choice in message


TPU = "hardware.platform=tpu hardware.loss_dtype=float32"
MESH = "hardware.devices_per_host=8"
FUSED = "model.mixer=attention hardware.backend=inductor hardware.attention=fused"
NO_EMBEDDING = "model.puzzle_emb_ndim=0 model.puzzle_emb_len=0"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("hardware.devices_per_host=32 train.global_batch_size=100", "train.global_batch_size=100 |32 devices|96 or 128"),
        (f"{MESH} train.global_batch_size=7", "train.global_batch_size=7 |8 devices|use 8"),
        (f"{MESH} evaluate.batch_size=12", "evaluate.batch_size=12|8 or 16"),
        ("model.mixer=attention model.num_heads=7", "model.num_heads=7|model.hidden_size=512|divisor"),
        ("model.mixer=attention model.positions=rope model.hidden_size=40", "model.positions=rope|even head size|model.num_heads"),
        ("model.positions=rope", "model.positions=rope|model.mixer=attention"),
        ("tracking.wandb=disabled tracking.artifact=best", "tracking.artifact=best|tracking=auto"),
        ("model.puzzle_emb_ndim=0", "model.puzzle_emb_len=16|model.puzzle_emb_len=0"),
        ("model.puzzle_emb_len=1 model.puzzle_emb_ndim=1025", "model.puzzle_emb_ndim=1025|model.puzzle_emb_len to 3"),
        (f"{TPU} hardware.dtype=float64", "hardware.platform=tpu|bfloat16"),
        (f"{TPU} hardware.loss_dtype=float64", "hardware.platform=tpu|hardware.loss_dtype=float32"),
        (f"{TPU} hardware.backend=eager", "hardware.platform=tpu|hardware.backend=xla"),
        (f"{MESH} hardware.backend=eager", "hardware.backend=eager|hardware.devices_per_host=1"),
        ("hardware.dtype=float64 hardware.loss_dtype=float32", "hardware.dtype=float64|hardware.loss_dtype=float64"),
        (f"{FUSED} hardware.dtype=float64", "hardware.attention=fused|float64|inductor"),
        (f"{NO_EMBEDDING} train.trainable=puzzle_embedding", "train.trainable=puzzle_embedding|model.puzzle_emb_ndim=0"),
        ("data.source=generated data.train_csv=x.csv", "data.train_csv|data.source=csv"),
        ("data.box_rows=1 data.box_cols=1", "data.box_rows*data.box_cols=1|2 to 25"),
    ],
)
def test_combinations_that_do_not_fit(default, values, words):
    message = refused_values(default, {key: yaml.safe_load(value) for key, value in (each.split("=") for each in values.split())})
    for word in words.split("|"):
        assert word.strip() in message


def test_a_file_with_wrong_settings_is_named(default):
    with pytest.raises(ConfigError, match=r"^outputs/r/config.yaml: seed=-5"):
        from_plain(to_plain(default) | {"seed": -5}, "outputs/r/config.yaml")


# any valid value ---------------------------------------------------------------------------------------------------------------


def values_of(item):
    if item.metadata.get("choices"):
        return st.sampled_from(item.metadata["choices"])
    low, high, above, below = (item.metadata.get(bound) for bound in ("low", "high", "above", "below"))
    if "bool" in str(item.type):
        return st.booleans()
    if "int" in str(item.type):
        ints = st.integers(low, 10**9 if high is None else high) | st.integers(
            low, low + 8 if high is None else min(low + 8, high)
        )  # small values fit together more often
        if item.type == list[int]:
            return st.lists(ints, max_size=3)
        return ints | st.none() if "None" in str(item.type) else ints
    bottom, top = (low if above is None else above), (high if below is None else below)
    top = 1e9 if top is None else top
    return st.floats(bottom, top, exclude_min=above is not None, exclude_max=below is not None, allow_subnormal=False)


def settable():
    """Keys that are a choice, a bool or a number."""
    for key in all_keys():
        item = _field(key)
        if key.startswith("data.") and key.removeprefix("data.") not in keys_of(TASKS["sudoku"]):
            continue
        if item is not None and (item.metadata.get("choices") or any(kind in str(item.type) for kind in ("bool", "int", "float"))):
            yield key, item


SETTABLE = dict(settable())
WITHIN_RANGE = st.lists(st.sampled_from(sorted(SETTABLE)), max_size=5, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: values_of(SETTABLE[key]) for key in keys})
)


def check_values(chosen, build):
    """Settings built with these values hold them, or are refused for a combination in one line."""
    refusal = None
    try:
        cfg = build()
    except ConfigError as error:
        refusal = str(error)
    if refusal is None:
        plain = to_plain(cfg)
        for key, value in chosen.items():
            *groups, name = key.split(".")
            assert (plain[groups[0]] if groups else plain)[name] == value
    else:
        assert "\n" not in refusal
        assert any(f"{key}=" in refusal for key in all_keys()) or any(key in refusal for key in all_keys() if "." in key)
        assert "is out of range" not in refusal
        assert "is not one of" not in refusal


@settings(deadline=None, max_examples=200)
@given(chosen=WITHIN_RANGE)
def test_values_within_range_are_taken_or_refused_as_a_combination(default, chosen):
    check_values(chosen, lambda: with_values(default, chosen))


def test_a_ratio_that_leaves_the_range_is_named():
    assert "data.num_puzzles=0 must be at least 1" in (
        words := refusal("data=sudoku_4x4", "recipe=tiny", "recipe.data_scale=1e-300")
    )
    assert words.endswith("change recipe.data_scale=1e-300")
    assert "is out of range" in refusal("data.num_puzzles=0")


@settings(deadline=None, max_examples=4)
@given(chosen=WITHIN_RANGE)
def test_values_within_range_on_the_command_line(chosen):
    overrides = [f"{key}={'null' if value is None else value}" for key, value in chosen.items()]
    if chosen.get("hardware.num_devices", 1) is None:  # as many as there are
        chosen = chosen | {"hardware.num_devices": 2}
    check_values(chosen, lambda: compose(overrides))


# length of a run ---------------------------------------------------------------------------------------------------------------


def test_total_steps(default):
    paper = changed(default, train__global_batch_size=768, train__epochs=50_000, train__max_steps=None)
    assert total_steps(paper, 1000) == 65_104
    assert total_steps(changed(paper, train__global_batch_size=256), 1000) == 195_312
    assert total_steps(changed(paper, train__max_steps=123), 1000) == 123
    assert total_steps(changed(paper, train__epochs=1, train__global_batch_size=1000), 1000) == 1
    with pytest.raises(ConfigError, match=r"train.epochs=1 .*train.global_batch_size=768") as caught:
        total_steps(changed(paper, train__epochs=1), 767)
    assert "\n" not in str(caught.value)


# what identifies a run ---------------------------------------------------------------------------------------------------------

# A run goes on with another value of these, and of no other key; under a constant schedule of its length too.
MAY_CHANGE = {
    "data.path", "data.source_dir", "data.train_csv", "data.test_csv", "data.num_test_puzzles", "hardware.name", "hardware.backend",
    "hardware.platform", "hardware.num_hosts", "hardware.devices_per_host", "hardware.attention", "hardware.compile_cache",
    "hardware.placement", "hardware.jobs", "hardware.jobs_per_device", "hardware.num_devices", "hardware.token_multiple",
    "hardware.step_graph", "train.log_every_steps", "train.eval_every_steps",
    "train.checkpoint_every_steps", "train.keep_checkpoints", "train.resume", "train.progress", "train.profile_steps", "run_name",
}  # fmt: skip
MAY_CHANGE_GROUPS = {"tracking", "recipe", "evaluate", "inference"}
LENGTH = {"train.max_steps", "train.max_flops", "train.epochs"}


def settings_of(node, prefix=""):
    """(key, field, value) of every key of the schema that is no group."""
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item, value


def another(item, value):
    """A value of the same type as this one."""
    if item.metadata.get("choices"):
        return next(choice for choice in item.metadata["choices"] if choice != value)
    if item.type is bool:
        return not value
    kind = str(item.type)
    if kind.startswith("list"):
        return [*value, Phase(0.5, 1, 1) if "Phase" in kind else "other"]
    return f"{value}_other" if "str" in kind else (value or 0) + (1 if "int" in kind else 0.125)


def test_digest_is_short_and_stable(default):
    assert len(digest(default)) == 16
    assert int(digest(default), 16) >= 0
    assert digest(default) == digest(compose(["run_name=another"]))
    assert digest(default) == digest(from_plain(json.loads(json.dumps(to_plain(default))), "FILE"))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "curriculum"])
def test_every_key_that_changes_numbers_is_refused_on_a_resume(default, schedule):
    if schedule == "curriculum":
        default = changed(default, recursion__curriculum=[Phase(0.3, 1, 1)])
    else:
        default = changed(default, optimizer__schedule=schedule)
    walked = set()
    default_of = {key: of_its_task(default, key) for key in all_keys()}
    for key, item, value in {each[0]: each for cfg in default_of.values() for each in settings_of(cfg)}.values():
        default = default_of[key]
        walked.add(key)
        new = another(item, value)
        other = changed(default, **{key.replace(".", "__"): new})
        assert to_plain(other) != to_plain(default)
        may = key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE_GROUPS
        assert (digest(other) == digest(default)) == may, key
        found = resume_conflicts(to_plain(default), other)
        if may or (key in LENGTH and schedule == "constant"):
            assert found == [], key
        else:
            (words,) = found
            assert words.startswith(f"{key}="), key
    assert walked >= MAY_CHANGE | LENGTH


def test_resuming_reads_what_a_checkpoint_says(default):
    saved = json.loads(json.dumps(to_plain(default)))
    assert resume_conflicts(saved, default) == []
    del saved["data"]["path"], saved["run_name"], saved["tracking"]  # a checkpoint leaves names and paths out
    assert resume_conflicts(saved, default) == []
    assert numerics(saved) == numerics(to_plain(default))


def test_differences():
    there, here = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}, {"a": 1, "b": {"c": 5, "d": {"e": 4}}, "f": 6}
    assert differences(there, here) == ["b.c=2 there, 5 here", "b.d.e=3 there, 4 here", "f=None there, 6 here"]
    assert differences(there, there) == []
