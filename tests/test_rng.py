"""Random numbers by counter: their statistics, and that nothing but their counters decides them."""

import numpy as np
import pytest
import torch
from scipy import stats

from trm.ground.rng import RECURSION_NOISE, STARTS, normal, threefry, uniform

ROWS = torch.arange(400)


def noise(**given):
    given = {"seed": 3, "rows": ROWS, "shape": (250,), "stream": STARTS, "dtype": torch.float64} | given
    seed, rows, shape = given.pop("seed"), given.pop("rows"), given.pop("shape")
    return normal(seed, rows, shape, **given)


def test_the_words_are_those_of_random123():
    """Known answers of threefry2x32 with 13 rounds (Random123's kat_vectors)."""

    def words(*values):
        return tuple(torch.tensor([value], dtype=torch.int64).to(torch.int32) for value in values)

    for counter, key, expected in [
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    ]:
        found = tuple(int(word) % 2**32 for word in threefry(words(*key), words(*counter)))
        assert found == expected


@pytest.mark.parametrize("truncated", [False, True])
def test_the_distribution_is_the_normal_one(truncated):
    numbers = noise(truncated=truncated).numpy().ravel()
    law = stats.truncnorm(-2, 2) if truncated else stats.norm()
    assert stats.kstest(numbers, law.cdf).pvalue > 1e-3
    assert abs(numbers.mean()) < 5 * law.std() / len(numbers) ** 0.5
    assert abs(numbers.var() - law.var()) < 0.02
    beyond = np.abs(numbers) > 3
    assert not beyond.any() if truncated else abs(beyond.mean() - 2 * stats.norm.sf(3)) < 1e-3
    assert not truncated or np.abs(numbers).max() <= 2


def test_uniform_numbers_are_uniform():
    numbers = uniform(0, ROWS, (250,), stream=STARTS)
    assert stats.kstest(numbers.numpy().ravel(), "uniform").pvalue > 1e-3
    assert numbers.min() > 0
    assert numbers.max() < 1


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"seed": 3 + 2**32},
        {"stream": RECURSION_NOISE},
        {"step": 1},
        {"application": 1},
        {"rows": ROWS + 400},
        {"rows": ROWS + 2**32},
    ],
    ids=str,
)
def test_another_counter_gives_independent_numbers(other):
    a, b = noise().numpy().ravel(), noise(**other).numpy().ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5
    assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 5 / len(a) ** 0.5


def test_no_two_rows_and_no_two_elements_go_together():
    numbers = noise().numpy()
    across = np.corrcoef(numbers)[np.triu_indices(len(ROWS), 1)]
    assert np.abs(across).max() < 6 / numbers.shape[1] ** 0.5
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.02
    assert len(np.unique(numbers[:, 0])) == len(ROWS)


def test_a_row_has_its_numbers_in_every_batch_and_with_any_form_of_the_counters():
    whole = noise(step=7, application=2)
    parts = [noise(rows=rows, step=7, application=2) for rows in ROWS.split(37)]
    assert torch.equal(torch.cat(parts), whole)
    tensors = noise(seed=torch.tensor(3), step=torch.full((400,), 7), application=torch.tensor(2))
    assert torch.equal(tensors, whole)
    assert torch.equal(noise(shape=(5, 50), step=7, application=2).reshape(400, 250), whole)
    steps = torch.arange(400) % 2
    mixed = noise(step=steps)
    assert torch.equal(mixed[::2], noise(step=0)[::2])
    assert torch.equal(mixed[1::2], noise(step=1)[1::2])


@pytest.mark.long
@pytest.mark.parametrize("backend", ["inductor", "openxla"])
def test_the_compiled_numbers_are_the_same(backend):
    def draw(rows, step):
        return normal(3, rows, (33,), stream=STARTS, step=step, dtype=torch.float64)

    rows, step, device = ROWS[:20], torch.tensor(9), "cpu"
    if backend == "openxla":
        torch_xla = pytest.importorskip("torch_xla")
        device = torch_xla.device()
    compiled = torch.compile(draw, backend=backend, fullgraph=True)
    found = compiled(rows.to(device), step.to(device)).cpu()
    torch.testing.assert_close(found, draw(rows, step), rtol=1e-12, atol=1e-12)
