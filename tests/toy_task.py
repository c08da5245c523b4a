"""The task outside the package that docs/tutorials/your_own_task.md shows: its code and its YAML are taken from the page."""

import re
import sys
from pathlib import Path

import yaml

PAGE = (Path(__file__).parents[1] / "docs" / "tutorials" / "your_own_task.md").read_text(encoding="utf-8")
SETTINGS = yaml.safe_load(re.search(r"```yaml\n(# conf/data/sums.yaml\n.*?)```", PAGE, re.DOTALL)[1])
CODE = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "# sums.py" in code)

exec(compile(CODE, "docs/tutorials/your_own_task.md", "exec"), vars(sys.modules[__name__]))
