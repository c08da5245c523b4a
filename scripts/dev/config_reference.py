"""Write docs/reference/config.md, the reference of the config keys, from the schema: python scripts/dev/config_reference.py"""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from trm.config import Config, DataConfig, keys_of
from trm.config.groups import CONF_DIR, GROUPS
from trm.tasks import TASKS

FILE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "config.md"
HEAD = """# Every key

For everyone who sets something by `KEY=VALUE` or in a YAML file: each key with its default, its meaning and the allowed values.

A default is the schema's own; the options of a group (`conf/GROUP/OPTION.yaml`) set others. `python -m trm.train --cfg job` shows
the settings of a command, and `--info` shows where each value and ratio came from. The page is made by
`python scripts/dev/config_reference.py` from `trm/config` and the settings of each task in `trm/tasks`; do not edit it.
"""


def reference() -> str:
    """The page."""
    parts = [HEAD]
    top = [item for item in dataclasses.fields(Config) if not dataclasses.is_dataclass(item.type)]
    parts.append(_table("The run", "", "", top))
    for item in dataclasses.fields(Config):
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            options = sorted(p.stem for p in (CONF_DIR / item.name).glob("[!_]*.yaml"))
            about = GROUPS.get(item.name) or (item.type.__doc__ or "").splitlines()[0]
            chosen = f" Options: {', '.join(f'`{name}`' for name in options)}." if options else ""
            prefix, common = f"{item.name}.", keys_of(item.type, known=False)
            parts.append(_table(f"`{item.name}`", f"{about}.{chosen}".replace("..", "."), prefix, common.values()))
            for task, settings in TASKS.items() if item.type is DataConfig else ():
                own = [field for key, field in keys_of(settings).items() if key not in common]
                parts.append(_table(f"`data` of `data.task={task}` alone", (settings.__doc__ or "").splitlines()[0], prefix, own))
    return "\n".join(parts)


def _table(title: str, about: str, prefix: str, items: typing.Iterable[dataclasses.Field[Any]]) -> str:
    lines = [f"## {title}", *([about, ""] if about else []), "| key | default | meaning | allowed |", "| --- | --- | --- | --- |"]
    lines += [f"| `{prefix}{i.name}` | {_default(i)} | {i.metadata['doc']} | {_allowed(i)} |" for i in items]
    return "\n".join(lines) + "\n"


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
    if value == MISSING:
        return "from the option"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(item: dataclasses.Field[Any]) -> str:
    rule = item.metadata
    if rule.get("choices"):
        return ", ".join(f"`{choice}`" for choice in rule["choices"])
    bounds = (("low", "≥"), ("above", ">"), ("high", "≤"), ("below", "<"))
    return ", ".join(f"{sign} {rule[name]:,}" for name, sign in bounds if rule.get(name) is not None)


if __name__ == "__main__":
    FILE.write_text(reference())
    print(f"written: {FILE}")
