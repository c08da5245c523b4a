"""The study's W&B workspace as code: `python -m trm.dashboard push [entity=..] [project=..] [name=..] [--dry-run]`.

The command creates the workspace, or replaces its sections where it exists: learning curves by recursion, final exact accuracy by
variant beside the paper's, parallel coordinates over the ablation, throughput, halting, held-out puzzles. The visible runs
and their colours do not change. The command needs a W&B key, and a project that has had a run (tracking=wandb).

  entity=NAME   team or user; default: conf/tracking, then WANDB_ENTITY, then the account's own
  project=NAME  default: conf/tracking, then WANDB_PROJECT, then the project of the runs
  name=TEXT     the name of the workspace
  --dry-run     print what would be sent, as JSON; needs neither network nor account
"""

import hashlib
import json
from typing import Any

from trm.cli import compose, options, plain_command
from trm.config import check_address, paper
from trm.errors import RunFailure, UserError, message_of
from trm.tracking.wandb_view import key_problem, teardown_wandb, wandb_errors, with_wandbs_own

# wandb_workspaces is imported where it is used: it imports wandb, which takes a second, and wrong arguments are refused before.

NAME = "TRM scaling study"
FINAL, PAPER = "eval/exact_accuracy", "paper/exact_accuracy"
LOGARITHMIC = ("train/loss", "train/grad_norm")
REFUSED = (401, 403)


def sections() -> list[Any]:
    """The sections of the workspace from top to bottom. Metrics are those of trm/tracking, in all panels over global_step."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def lines(*curves: tuple[str, str]) -> list[Any]:
        """Curves of the mean over the runs of each recursion, and the range of the runs around it."""
        mean = {"groupby": wr.Config("labels.recursion"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
        return [wr.LinePlot(title=title, x="global_step", y=[y], log_y=y in LOGARITHMIC, **mean) for title, y in curves]

    bars = wr.BarPlot(
        title="Final exact accuracy by variant, and the paper's",
        metrics=[FINAL, PAPER],
        groupby=wr.Config("labels.variant"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        range_x=(0.0, 1.0),
        max_bars_to_show=100,
    )
    settings = {"recursion.T": "T", "recursion.n": "n", "ema.enabled": "EMA", "model.mixer": "model"}
    settings |= {"model.hidden_size": "width", "optimizer.lr": "learning rate", "seed": "seed"}
    column = wr.ParallelCoordinatesPlotColumn
    axes = [column(metric=wr.Config(key), display_name=name, log=key == "optimizer.lr") for key, name in settings.items()]
    axes.append(column(metric=wr.SummaryMetric(FINAL), display_name="final exact accuracy"))
    contents = {
        "Learning curves by recursion": lines(
            ("Training loss", "train/loss"),
            ("Exact accuracy, held-out puzzles", "eval/exact_accuracy"),
            ("Cell accuracy, held-out puzzles", "eval/accuracy"),
            ("Learning rate", "train/lr"),
            ("Norm of the gradient", "train/grad_norm"),
            ("Norm of the weights", "train/weight_norm"),
        ),
        "Final exact accuracy by variant": [bars, wr.MarkdownPanel(markdown=paper_table())],
        "Ablation: settings against final exact accuracy": [wr.ParallelCoordinatesPlot(title="Ablation", columns=axes)],
        "Throughput": lines(
            ("Samples per second", "train/samples_per_s"),
            ("Step time, s", "train/step_time_s"),
            ("Host time of a step, s", "train/host_time_s"),
            ("Wait for the loader in a step, s", "train/loader_wait_s"),
            ("Compiles", "train/compiles"),
        ),
        "Halting": lines(
            ("Mean supervision steps of the rows that halted", "train/steps"),
            ("Halting accuracy, training", "train/q_halt_accuracy"),
            ("Halting accuracy, held-out puzzles", "eval/q_halt_accuracy"),
        ),
        "Held-out puzzles": [wr.MediaBrowser(title="Answers after every supervision step", media_keys=["held_out/thinking"])],
    }
    columns = {"Final exact accuracy by variant": 2, "Ablation: settings against final exact accuracy": 1, "Held-out puzzles": 1}
    made = []
    for name, panels in contents.items():
        for number, panel in enumerate(panels):
            panel._id = _short_hash(
                name, str(number)
            )  # the same at every push, so that the browser keeps its settings of the panel
        layout = ws.SectionLayoutSettings(columns=columns.get(name, 3), rows=1 if len(panels) <= columns.get(name, 3) else 2)
        made.append(ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout))
    return made


def paper_table() -> str:
    """The paper's values as a markdown table, best first."""
    rows = sorted(paper.ROWS, key=lambda row: row.exact_accuracy, reverse=True)
    lines = ["**The paper's test exact accuracy**", "", "| variant | % |", "| --- | ---: |"]
    lines += [f"| {row.name} | {100 * row.exact_accuracy:.1f} |" for row in rows]
    note = f"{paper.CITATION}: {paper.DATASET_LABEL}. Only runs on these puzzles have the paper's bar."
    return "\n".join([*lines, "", note])


def workspace(entity: str | None, project: str, name: str) -> Any:
    """The workspace as it is first created; `entity` None = the account's own. Raises UserError for a wrong name."""
    import wandb_workspaces.workspaces as ws

    try:
        made = ws.Workspace(
            entity=entity or "",
            project=project,
            name=name,
            sections=sections(),
            settings=ws.WorkspaceSettings(x_axis="global_step", max_runs=100),
        )
    except ValueError as error:  # the user gives only the name
        raise UserError(f"name={name}: W&B allows no symbols such as + = < > and no emojis in it") from error
    if entity:
        # W&B finds a saved view by a name that its clients choose. This name is the same on every machine.
        made._internal_name = f"nw-{_short_hash(entity, project, name)}-v"
    return made


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:11]


def push(entity: str | None, project: str, name: str) -> tuple[str, bool]:
    """Write the workspace; its address, and whether it was there before.

    Raises:
        UserError: no usable key, no such project, or a name that W&B does not allow.
        RunFailure: the server does not answer or refuses.
    """
    import wandb
    import wandb_workspaces.workspaces as ws
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb_workspaces.workspaces.errors import SpecVersionError

    try:
        if problem := key_problem():
            raise UserError(f"push needs a W&B key ({problem}): run `wandb login` or set WANDB_API_KEY; --dry-run needs none")
        entity = entity or wandb.Api().default_entity
        if not entity:
            raise UserError("this W&B account has no default entity: give entity=NAME")
        new = workspace(entity, project, name)
        try:
            found = ws.Workspace.from_url(new.url)
        except (ValueError, SpecVersionError) as error:  # ValueError also for what does not exist
            if str(error).startswith("Project"):
                hint = "a first run with tracking=wandb makes it, or correct entity= and project="
                raise UserError(f"W&B has no project {entity}/{project}: {hint}") from error
            if not str(error).startswith("Workspace"):
                raise RunFailure(f"wandb-workspaces cannot read what is at {new.url}: push under another name=") from error
            return str(new.save().url), False
        found.sections, found.settings = new.sections, new.settings
        return str(found.save().url), True
    except (*wandb_errors(), WandbApiFailedError) as error:
        server = str(wandb.setup().settings.base_url)
        answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)  # W&B may wrap it
        if answer is None:
            raise RunFailure(f"{server} does not answer: check the network and WANDB_BASE_URL, and push again") from error
        if answer.http_status in REFUSED:
            raise UserError(f"{server} does not accept this W&B key: `wandb login --relogin`, or set WANDB_API_KEY") from error
        raise RunFailure(f"{server} did not take the workspace: {message_of(error)}") from error
    finally:
        teardown_wandb()


def parse(arguments: list[str]) -> tuple[str | None, str, str, bool]:
    """Entity, project and name of the workspace, and whether the command only prints it. Raises UserError."""
    given = options("trm.dashboard", arguments, dry_run=bool)
    command, *rest = given.rest or [""]
    if command != "push":
        raise UserError(f"{command or 'nothing'}: not a command of trm.dashboard: give python -m trm.dashboard push")
    names = {"entity": "", "project": "", "name": NAME}
    for key, separator, value in (argument.partition("=") for argument in rest):
        if not separator or key not in names:
            raise UserError(f"{key}{separator}{value}: not understood: give entity=NAME, project=NAME, name=TEXT or --dry-run")
        if key != "name" or not value:
            check_address(key, value)
        names[key] = value
    own = with_wandbs_own(compose([]).tracking)
    return names["entity"] or own.entity, names["project"] or str(own.project), names["name"], given.dry_run


def main(arguments: list[str]) -> None:
    """The command; see the module's docstring."""
    entity, project, name, dry_run = parse(arguments)
    if dry_run:
        view = workspace(entity, project, name)._spec
        print(json.dumps({key: value or None for key, value in view.items()}, indent=1))  # null: W&B chooses it
        return
    url, was_there = push(entity, project, name)
    print(f"{'updated' if was_there else 'created'} {url}")


if __name__ == "__main__":
    plain_command(main, __doc__)
