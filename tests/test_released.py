"""What users of the released codes type: their names are translated, and docs/how-to/from_released.md says what is true."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from trm.cli import compose
from trm.config import all_keys, to_plain
from trm.config.groups import CONF_DIR, GROUPS, group_options
from trm.config.overrides import override, quoting_hint
from trm.config.refusals import ELSEWHERE, OPTIONS, RELEASED, key_hint
from trm.errors import ConfigError

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "from_released.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\| `(.+?)` \| `(python -m .+?)` \|$", PAGE, re.MULTILINE)
WORDS = {"True": True, "False": False, "none": "none"}


def refusal(*overrides):
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides))
    return str(caught.value)


def exists(write):
    """Whether a key, GROUP= or a command is there to be typed."""
    group, _, _ = write.partition("=")
    return write in all_keys() or (write.endswith("=") and group in GROUPS) or write.startswith("python -m trm.")


@pytest.mark.parametrize(
    ("typed", "here"),
    [
        ("puzzle_emb_lr=1e-4", "optimizer.puzzle_emb_lr"),
        ("train.lr=1e-3", "optimizer.lr"),
        ("eval_interval=5000", "train.eval_every_steps"),
        ("+arch.H_cycles=3", "recursion.T "),
        ("arch.loss.loss_type=softmax_cross_entropy", "model.loss"),
        ("batch_size=3", "train.global_batch_size"),
        ("arch=trm", "model="),
        ("ema=True", "ema=on"),
        ("weight_decey=1", "optimizer.weight_decay"),
        ("+run_name=x", "leave out the +"),
        ("recursion=t3n6", "recursion=t3_n6"),
        ("model=mpl", "model=mlp"),
        ("latents.heads=4", "latents.num_hypotheses"),
    ],
)
def test_a_key_of_another_code_is_translated(typed, here):
    assert here in refusal("tracking=none", typed)


def test_every_name_is_translated_to_what_there_is():
    for name, (write, _) in RELEASED.items():
        assert write == "nothing" or exists(write), name
        assert f"released code calls {name} is {write} here" in key_hint(f"arch.{name}"), name
    for name, write in ELSEWHERE.items():
        assert exists(write), name
        assert name not in all_keys(), name
        assert key_hint(name) == f"did you mean {write}?"
    for group, words in OPTIONS.items():
        assert set(words.values()) <= set(group_options(group)), group
        assert not set(words) & set(group_options(group)), group


def test_the_page_lists_every_name():
    rows = re.findall(r"^\| `([\w]+)` \| `?(.*?)`? \| (.*?) ?\|$", PAGE, re.MULTILINE)
    assert {name: (write, note) for name, write, note in rows} == RELEASED


@pytest.mark.parametrize(("there", "here"), COMMANDS)
def test_the_commands_of_the_page_mean_the_same(there, here):
    module, *given = shlex.split(here)[2:]
    if module not in ("trm.train", "trm.build_data"):
        return
    cfg = to_plain(compose(given))
    settings = {f"{group}.{key}": value for group in cfg if isinstance(cfg[group], dict) for key, value in cfg[group].items()}
    theirs = [word.lstrip("+").split("=", 1) for word in shlex.split(there)[1:] if "=" in word]
    options = shlex.split(there)
    theirs += [(a[2:].replace("-", "_"), b) for a, b in itertools.pairwise(options) if a.startswith("--")]
    for key, value in theirs:
        last = key.rpartition(".")[2]
        write = RELEASED[last][0] if last in RELEASED else next((k for k in all_keys() if k.endswith(f".{last}")), key)
        if last == "eval_interval":  # in epochs
            epochs = int(value) * cfg["data"]["num_puzzles"]
            assert settings[write] == epochs // cfg["train"]["global_batch_size"]
        elif last == "mlp_t":
            assert settings[write] == ("mlp" if value == "True" else "attention")
        elif last == "ema":
            assert settings["ema.enabled"] == (value == "True")
        elif last == "run_name":
            assert cfg["run_name"] == value
        elif write in settings and isinstance(settings[write], list):
            assert value in settings[write]
        elif write in settings and last not in ("data_path", "data_paths", "output_dir", "input_file_prefix"):
            assert settings[write] == WORDS.get(value, value) or float(settings[write]) == float(value), key


@pytest.mark.parametrize(
    "text",
    ["mon été", "a(b", "a#b", 'say "a"', "it's", "a,b", "back\\", 'x\\"', "a=b@c", "[open", "数独", "true", "1e3", "", " a "],
)
def test_text_that_hydra_does_not_read_is_quoted_so_that_it_does(text):
    assert compose([override("tracking.notes", text)]).tracking.notes == text
    assert shlex.split(quoting_hint(f"tracking.notes={text}").rpartition(": ")[2]) == [override("tracking.notes", text)]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("train.max_steps", "write it as train.max_steps=VALUE"),
        ("train.max_steps: 3", "write it as KEY=VALUE"),
        ("\u2013multirun", "\u2013 is a typographic sign"),
        ("run_name=\u201cx\u201d", "\u201c is a typographic sign"),
        ("seed='1", "Hydra cannot read"),
    ],
)
def test_what_is_no_override_is_refused_with_the_reason(typed, words):
    assert words in refusal(typed)


def test_a_value_that_hydra_does_not_read_is_refused_with_the_right_one():
    message = refusal("latents.no_key=mon été")
    assert message.endswith(shlex.quote('latents.no_key="mon été"'))
    assert "Exception" not in message
    assert str(CONF_DIR) not in message
