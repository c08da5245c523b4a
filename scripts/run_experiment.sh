#!/usr/bin/env bash
# Train one named experiment: scripts/run_experiment.sh NAME RUN_NAME [GROUP=OPTION|KEY=VALUE ...]
# Starts python from .venv where there is one (PYTHON=... chooses another); the run goes to outputs/RUN_NAME.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 NAME RUN_NAME [GROUP=OPTION|KEY=VALUE ...]; names: python -m trm.train --help" >&2; exit 2; }
name=$1 run_name=$2; shift 2
cd "$(dirname "$0")/.."
python=.venv/bin/python; [ -x "$python" ] || python=python
exec "${PYTHON:-$python}" -m trm.train "experiment=$name" "run_name=$run_name" "$@"
