"""Try trained networks in a browser: `python -m trm.playground [checkpoint=RUN ...] [--port N] [--share]`.

The page generates a puzzle, or you paste one. It solves the puzzle with the chosen way of inference, and shows the grid after each
step, the halting probability, the cost, and whether the answer is right. It can compare two networks on one puzzle. It offers the
networks in models/ and each checkpoint=RUN. Everything is computed on the CPU.

  --port N  the port of the page on this machine; default: the first free one from 7860 on
  --share   also give the page a public address, through a tunnel of gradio; everyone who knows it can use this machine's CPU

Only this machine can open the page, unless --share is given or GRADIO_SERVER_NAME names another address to listen on.
It needs gradio: pip install 'trm-scaling-study[playground]'
"""

if __name__ == "__main__":  # before what takes seconds to import
    from trm.cli import plain_command

    plain_command("trm.playground:main", __doc__, needs_arguments=False)
    raise SystemExit

import functools
import html
import importlib
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trm.api import Network, load
from trm.cli import options
from trm.config.groups import group_options
from trm.data.puzzle_text import questions_in
from trm.errors import DataError, RunFailure, UserError
from trm.run.saved import published, split_arguments

LEVELS = ("easy", "medium", "hard")
POOL = 48  # generated puzzles among which one of a level is taken
LONGEST_TEXT = 20_000  # characters
ALONE = "no second network"
NETWORKS_KEPT = 8
DEFAULT_HOST = "127.0.0.1"


class Answer(NamedTuple):
    """What the page shows of one network."""

    facts: str  # HTML
    page: str = ""  # HTML: the network thinking


@functools.lru_cache(maxsize=NETWORKS_KEPT)
def network(checkpoint: str, way: str) -> Network:
    """A network with a way of inference. Raises UserError."""
    return load(checkpoint, [f"inference={way}"])


def ways() -> list[str]:
    """The ways of inference that answer a puzzle; `frontier` is a list of ways."""
    return ["standard", *(name for name in group_options("inference") if name not in ("standard", "frontier"))]


def new_puzzle(checkpoint: str, level: str, seed: int) -> str:
    """The text of a new puzzle of a level.

    It is from the easiest, the middle or the hardest third of POOL generated puzzles, by the difficulty that the task measures.
    Raises UserError where the project does not generate the network's puzzles.
    """
    task = network(checkpoint, "standard").task
    questions, answers = task.generate_splits({"test": POOL}, seed)["test"]
    order = np.argsort(task.difficulty(questions, answers), kind="stable") if task.difficulty_words else np.arange(POOL)
    third = np.array_split(order, len(LEVELS))[LEVELS.index(level)]
    return task.view.grid(questions[random.Random(seed).choice(third.tolist())])


def answer(checkpoint: str, way: str, text: str) -> Answer:
    """A network's answer to the text of a puzzle, or what is wrong with the text.

    The text is never the name of a file; otherwise everyone who has the page could read this machine's files.
    """
    try:
        found = network(checkpoint, way)
        if not text.strip():
            raise DataError("there is no puzzle: paste a puzzle, or press New puzzle")
        if len(text) > LONGEST_TEXT:
            raise DataError(f"{len(text):,} characters are not a puzzle: paste a puzzle")
        questions = questions_in(text, found.task)
        if len(questions) > 1:
            raise DataError(f"{len(questions)} puzzles were pasted: leave one of them")
        inference = found.settings.inference
        if inference.selection == "resample":  # these candidates have no history to show
            solution = found.solve(questions[0])
            page = f"<pre>{html.escape(found.task.view.grid(solution.answers[0]))}</pre>"
        else:
            frames = found.think(questions[0])
            solution, page = frames.solution, frames.embedded()
    except (UserError, RunFailure) as error:
        return Answer(f'<p class="refused"><strong>Not solved.</strong> {html.escape(str(error))}</p>')
    cost = solution.cost
    facts = {
        "answer": "right" if solution.solved[0] else "wrong",
        "why": solution.verdicts[0],
        "halting probability": f"{solution.halting[0]:.3f}",
        "supervision steps": str(solution.steps[0]),
        "candidates": f"{cost['candidates']:g}" + (f", {solution.votes[0]} gave this answer" if inference.candidates > 1 else ""),
        "passes of the network": f"{cost['passes_per_puzzle']:,.0f}",
        "GFLOP": f"{cost['flops_per_puzzle'] / 1e9:,.3g}",
        "seconds": f"{cost['seconds_per_puzzle']:.2f}",
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items())
    return Answer(f'<table class="facts">{rows}</table>', page)


def both(first: str, second: str, first_way: str, second_way: str, text: str) -> tuple[str, str, str, str]:
    """Facts and page of the first network, and of the second, which are empty where there is none."""
    return *answer(first, first_way, text), *(Answer("") if second == ALONE else answer(second, second_way, text))


def build(offered: dict[str, str], gradio: Any) -> Any:
    """The page, a gradio.Blocks, of the networks that are offered: checkpoints by the names that the page gives them."""
    gr, names = gradio, list(offered)
    with gr.Blocks(title="TRM playground", analytics_enabled=False) as page:
        gr.Markdown("# TRM playground\nA tiny recursive network answers a puzzle after every latent recursion. Watch it think.")
        with gr.Row():
            first = gr.Dropdown(names, value=names[0], label="Network", elem_id="first")
            first_way = gr.Dropdown(ways(), value="standard", label="Way of inference", elem_id="first-way")
            second = gr.Dropdown([ALONE, *names], value=ALONE, label="Compare with", elem_id="second")
            second_way = gr.Dropdown(ways(), value="standard", label="Its way of inference", elem_id="second-way")
        with gr.Row():
            level = gr.Radio(list(LEVELS), value="medium", label="Difficulty", elem_id="level")
            new = gr.Button("New puzzle", elem_id="new")
        text = gr.Textbox(label="Puzzle", info="row by row", lines=9, max_lines=20, elem_id="puzzle")
        solve = gr.Button("Solve", variant="primary", elem_id="solve")
        with gr.Row():
            columns = []
            for name in ("one", "two"):
                with gr.Column():
                    columns += [gr.HTML(elem_id=f"{name}-facts"), gr.HTML(elem_id=f"{name}-page")]
        told = gr.HTML(elem_id="told")

        def generated(name: str, wanted: str) -> tuple[Any, str]:
            try:
                return new_puzzle(offered[name], wanted, random.SystemRandom().randrange(2**31)), ""
            except UserError as error:
                return gr.skip(), html.escape(str(error))

        def shown(one: str, two: str, *others: str) -> tuple[str, str, str, str]:
            return both(offered[one], offered.get(two, ALONE), *others)

        new.click(generated, [first, level], [text, told])
        solve.click(shown, [first, second, first_way, second_way, text], columns)
    return page


def networks(arguments: list[str]) -> dict[str, str]:
    """The checkpoints of the offered networks by name, those of the arguments first. Raises UserError for a wrong one."""
    found = {}
    for argument in arguments:
        path = split_arguments([argument])[0]
        found[str(path)] = str(Path(path).absolute()) if path.exists() else str(path)
        network(found[str(path)], "standard")  # a wrong one is refused here and not on the page
    return found | {model.name: str(model.folder) for model in published()}


def main(arguments: list[str]) -> None:
    """The command: serve the page until it is interrupted."""
    given = options("trm.playground", arguments, words=False, port=int, share=bool)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        gradio = importlib.import_module("gradio")
    except ImportError as error:
        raise UserError("trm.playground needs gradio: pip install 'trm-scaling-study[playground]'") from error
    page = build(networks(given.rest), gradio)
    host = os.environ.get("GRADIO_SERVER_NAME", DEFAULT_HOST)
    style = ".facts th {text-align: left; padding-right: 1em} .refused {color: #b00020} #puzzle textarea {font-family: monospace}"
    try:
        page.launch(server_name=host, server_port=given.port, share=given.share, css=style, quiet=False)
    except OSError as error:
        raise UserError(f"--port {given.port or ''}: {error}: choose another port") from error
