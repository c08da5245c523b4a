#!/usr/bin/env bash
# hardware=gpu on a machine with one CUDA GPU: parity in float64 and float32, speed, memory and kernels of the paper's step.
# Results go to $OUT (default: gpu_checks/); packages may lie as wheels in .whl/ where there is no network. torch_xla is not needed.
# PYTHON=python3 names the interpreter; BATCH the rows of a step.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-gpu_checks} PYTHON=${PYTHON:-python3} BATCH=${BATCH:-768}
mkdir -p "$OUT"
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/trm_inductor}

if compgen -G ".whl/*.whl" >/dev/null; then
  site=$(mktemp -d)
  $PYTHON -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
failed=""

part() {   # NAME SECONDS COMMAND...: output in $OUT/NAME.txt; a part that fails leaves the others to run
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.txt" || { failed+=" $name"; }
  echo "== $name: $((SECONDS - began)) s"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$OUT/gpu.txt"
PAPER=(hardware=gpu "train.global_batch_size=$BATCH" "evaluate.batch_size=$BATCH" --sizes paper_mlp)
part step 120 "$PYTHON" -m trm.bench step "${PAPER[@]}" --ways configured --rounds 7 --json "$OUT/step.json"
part kernels 90 "$PYTHON" -m trm.bench kernels "${PAPER[@]}" --json "$OUT/kernels.json"
TORCHINDUCTOR_COMPILE_THREADS=2 part parity 200 \
  "$PYTHON" -m pytest tests/test_parity.py -k gpu -q -n "${WORKERS:-10}" -p no:cacheprovider -rA
# the whole step as one graph, as the released code is compiled, beside the project's own; minutes to compile
part beside 300 "$PYTHON" -m trm.bench step "${PAPER[@]}" --ways configured,ordinary_compiled --rounds 7 --json "$OUT/beside.json"
echo "took $SECONDS s; failed:${failed:- nothing}"
[ -z "$failed" ]
