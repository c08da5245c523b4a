#!/usr/bin/env bash
# make demo: run the recursion grid on 4x4 Sudoku as a sweep, solve a held-out puzzle with one of its runs, and write the report.
# Arguments are overrides of the sweep: make demo DEMO="train.max_steps=100".
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
SWEEP=multirun/demo

HARDWARE=cpu
if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
  HARDWARE=cpu_bf16
  echo "this processor multiplies bfloat16: hardware=cpu_bf16, about twice as fast as hardware=cpu"
fi

began=$SECONDS
python -m trm.train +sweep=demo run_name=demo hardware=$HARDWARE "$@"
echo
echo "The T=2 n=2 run solves a held-out puzzle:"
python -m trm.solve "checkpoint=$SWEEP/recursion=t2_n2" test:0
echo
python -m trm.report $SWEEP
echo
echo "page with table and curves:  $PWD/$SWEEP/report/index.html"
echo "dashboard:                   .venv/bin/tensorboard --logdir $SWEEP   (then open http://localhost:6006)"
echo "the demo took $((SECONDS - began)) s; give the same command again to run only the missing jobs"
