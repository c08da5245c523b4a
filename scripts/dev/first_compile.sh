#!/usr/bin/env bash
# One step of the first command that README names, so that inductor's cache holds its kernels: scripts/dev/first_compile.sh PYTHON
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo "compiling the first kernels (half a minute, once) ..."
"$1" -m trm.train data=sudoku_4x4 recipe=tiny recursion=t2_n2 tracking=none train.max_steps=1 evaluate.max_puzzles=64 data.num_puzzles=64 \
  > log 2>&1 || echo "that failed: $(grep -v '^\s*$' log | tail -1)" >&2
