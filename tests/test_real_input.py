"""Real puzzles: train on rows of Sudoku-Extreme at a small width and evaluate on hard test rows."""

import json

import pytest
from running import metrics, run, summary


@pytest.mark.long
def test_train_on_sudoku_extreme(tmp_path, shared_data):
    csv = [
        f"data.train_csv={shared_data}/sudoku_extreme_train_1k.csv",
        f"data.test_csv={shared_data}/sudoku_extreme_test_hard_10k.csv",
    ]
    sizes = ["data.num_test_puzzles=64", "model.hidden_size=32", "model.puzzle_emb_ndim=32", "model.puzzle_emb_len=1"]
    length = ["recursion=t2_n2", "recursion.n_sup=4", "train.global_batch_size=32", "train.max_steps=20", "train.log_every_steps=5"]
    run(
        tmp_path,
        "trm.train",
        "data=sudoku_extreme",
        "hardware.backend=eager",
        "run_name=real",
        "tracking=none",
        *csv,
        *sizes,
        *length,
    )
    run_dir = tmp_path / "outputs" / "real"
    train = metrics(run_dir, "train")
    assert [line["global_step"] for line in train] == [5, 10, 15, 20]
    assert train[-1]["lm_loss"] < train[0]["lm_loss"]
    assert summary(run_dir)["last_eval"]["count"] == 64
    built = json.loads(next(tmp_path.glob("data/*/build.json")).read_text())
    assert built["settings"]["num_puzzles"] == 1000
