"""The rows of an evaluation: the candidates of the test puzzles, as `inference` says."""

import math

from trm.backends import Runtime
from trm.config import Config
from trm.core.candidates import row_keys
from trm.data.build import held_out_puzzles
from trm.data.format import Dataset
from trm.data.loader import EvalLoader, Host
from trm.data.pairs import PairEvalLoader

Only = tuple[Dataset, int | None]  # a dataset and the row of the only puzzle to evaluate; None = all of its puzzles


def candidate_loader(cfg: Config, runtime: Runtime, most: int | None = None, only: Only | None = None) -> EvalLoader:
    """The candidates of the puzzles in the test split of the config's dataset. Raises DataError where there is none.

    Of a larger one `most` puzzles, unless evaluate.max_puzzles says how many; or the `only` ones. Where rows have to be in one
    batch this is the largest batch of whole groups that is not larger than the settings', or one.
    """
    way = cfg.inference
    dataset, puzzle = only or (held_out_puzzles(cfg.data), None)
    host = Host(runtime.process_index, runtime.process_count)
    max_puzzles = 1 if puzzle is not None else cfg.evaluate.max_puzzles if only is None else None
    group = way.rows_together * runtime.num_devices  # on one device, whose program may see no other rows
    batch = max(cfg.eval_batch_size // group, 1) * group if way.rows_together > 1 else cfg.eval_batch_size
    if dataset.pairs_task is not None:
        return PairEvalLoader(
            dataset,
            global_batch_size=batch,
            max_puzzles=max_puzzles,
            max_variants=cfg.evaluate.max_variants,
            blank=cfg.evaluate.blank_identifiers,
            data_seed=cfg.data.seed,
            host=host,
        )
    # Where the rows leave half of the batch empty, it has as many as these need, for rows of padding take as long as any. It is not
    # made a little smaller: one as large as training's has nothing new to compile. Of a sample as of the rest: both have one shape.
    rows = min(max_puzzles or dataset.num_rows, dataset.num_rows) * way.candidates
    needed = math.ceil(rows / group) * group
    loader = EvalLoader(
        dataset,
        global_batch_size=needed if 2 * needed <= batch else batch,
        max_puzzles=max_puzzles or most,
        copies=way.copies,
        repeats=way.particles,
        keys=(lambda puzzles, places: row_keys(way, puzzles, places)) if way.is_random or cfg.is_random else None,
        data_seed=cfg.data.seed,
        host=host,
    )
    return loader if puzzle is None else loader.only(puzzle)


def caveats_of(cfg: Config) -> list[str]:
    """What changes how the results of a way of inference may be read, in words, a line each."""
    if cfg.inference.restarts == 1 or cfg.latents.init == "random":
        return []
    return [
        f"inference.restarts={cfg.inference.restarts}: the model was not trained with random starts, so it may solve fewer puzzles "
        "from them, and a small change of its logits may not mean that its answer is right"
    ]
