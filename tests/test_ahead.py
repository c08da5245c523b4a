"""What a run says of the time ahead of it."""

import pytest

from trm.cli import compose
from trm.run.ahead import ahead, hint, words


@pytest.mark.parametrize(("seconds", "text"), [(4, "4 s"), (99, "99 s"), (600, "10 min"), (9000, "2.5 h"), (400_000, "4.6 days")])
def test_durations_are_in_the_unit_that_is_read_best(seconds, text):
    assert words(seconds) == text


@pytest.mark.parametrize(
    ("every", "step", "when"), [(250, 6, "at step 250, in 122 s"), (250, 800, "at the end"), ("null", 6, "at the end")]
)
def test_the_next_evaluation_is_told(every, step, when):
    cfg = compose(["run_name=r", "data=sudoku_4x4", "recipe=tiny", f"train.eval_every_steps={every}"])
    text = ahead(cfg, step, 1000, 0.5).replace("2 min", "122 s")
    assert text.startswith("2 steps/s (128 samples/s): ")
    assert text.endswith(f"to step 1,000; the next evaluation is {when}")


@pytest.mark.parametrize(
    ("settings", "parameters", "told"),
    [
        (["model=tiny"], 123_778, True),
        (["recipe=tiny"], 123_778, False),
        (["model=mlp"], 5_000_000, False),
        (["model=tiny", "hardware=v4_8"], 123_778, False),
    ],
)
def test_a_small_model_with_a_large_batch_on_a_cpu_hears_of_the_recipe(settings, parameters, told):
    found = hint(compose(["run_name=r", "data=sudoku_4x4", *settings]), parameters)
    assert ("recipe=tiny" in (found or "")) is told
