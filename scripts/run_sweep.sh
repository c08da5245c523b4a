#!/usr/bin/env bash
# Run, or go on with, a named sweep: scripts/run_sweep.sh SWEEP [GROUP=OPTION|KEY=VALUE|'seed=0,1,2' ...]
# Starts python from .venv where there is one (PYTHON=... chooses another); the runs go to multirun/.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 SWEEP [GROUP=OPTION|KEY=VALUE|'seed=0,1,2' ...]; sweeps: python -m trm.train --help" >&2; exit 2; }
name=$1; shift
cd "$(dirname "$0")/.."
python=.venv/bin/python; [ -x "$python" ] || python=python
exec "${PYTHON:-$python}" -m trm.train "+sweep=$name" "$@"
