"""Measure: `python -m trm.bench [NAME ...]`; the measurements lie in bench/ beside the package."""

import sys

from trm.cli import ROOT, fail, plain_command
from trm.errors import UserError

if __name__ == "__main__":
    if not (ROOT / "bench" / "__main__.py").exists():
        fail(UserError("python -m trm.bench needs bench/, which a checkout of the project has: run it there"))
    sys.path.insert(0, str(ROOT))
    from bench.__main__ import __doc__ as usage
    from bench.__main__ import main

    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    plain_command(main, usage)
