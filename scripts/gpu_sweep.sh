#!/usr/bin/env bash
# A sweep of many small jobs on one CUDA GPU: as many at once as JOBS (default: cores less two), under CUDA's multi-process service where
# it can be started, without which small jobs wait for one another's turns on the GPU. Arguments are those of trm.train.
#   scripts/gpu_sweep.sh +sweep=field_6x6
set -uo pipefail
JOBS=${JOBS:-$(($(nproc) > 3 ? $(nproc) - 2 : 1))}
PYTHON=${PYTHON:-python3}

if command -v nvidia-cuda-mps-control >/dev/null; then
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
  CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  nvidia-cuda-mps-control -d
  trap 'echo quit | timeout 10 nvidia-cuda-mps-control; rm -rf "$CUDA_MPS_PIPE_DIRECTORY"' EXIT
  if ! timeout 60 "$PYTHON" -c 'import torch; torch.ones(1).cuda().sum().item()' >/dev/null; then
    echo "CUDA's multi-process service does not work here: the jobs take turns on the GPU" >&2
    echo quit | timeout 10 nvidia-cuda-mps-control
    trap - EXIT
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  fi
fi
TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-2} "$PYTHON" -m trm.train "$@" hardware=gpu "hardware.jobs=$JOBS"
