#!/usr/bin/env bash
# make demo: train one run on 4x4 Sudoku, then solve a held-out puzzle with it.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
RUN=outputs/demo_4x4

python -m trm.train experiment=demo_4x4 run_name=demo_4x4 tracking=tensorboard
echo
echo "A puzzle that was held out of training:"
python -m trm.solve checkpoint=$RUN test:0
echo
python - $RUN <<'PY'
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
summary = json.loads((run / "summary.json").read_text())
print(f"{summary['exact_accuracy']:.1%} of {summary['last_eval']['count']} held-out puzzles are solved exactly "
      f"after {summary['steps']} steps ({summary['seconds']:.0f} s of training)")
print(f"run folder: {run}   (train.log, metrics.jsonl, summary.json, checkpoints/)")
print(f"curves:     .venv/bin/tensorboard --logdir {run}/tensorboard")
PY
