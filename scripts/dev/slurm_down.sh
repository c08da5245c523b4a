#!/usr/bin/env bash
# Stop exactly the processes that slurm_up.sh recorded, newest first: RUN=DIR scripts/dev/slurm_down.sh. WIPE=1 also removes DIR.
set -uo pipefail
RUN=${RUN:?set RUN to the directory given to slurm_up.sh}; RUN=$(realpath -m "$RUN")
[ -e "$RUN/pids" ] || { echo "nothing is up in $RUN"; exit 0; }
export SLURM_CONF="$RUN/slurm.conf"
timeout 10 scancel --me 2>/dev/null && sleep 1
mapfile -t pids < <(tac "$RUN/pids")
for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null; done
alive() { for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && return 0; done; return 1; }
for _ in $(seq 100); do alive || break; sleep .1; done
for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && { echo "process $pid did not end: killed"; kill -KILL "$pid"; }; done
rm -f "$RUN/pids"
[ "${WIPE:-0}" = 1 ] && rm -rf "$RUN"
echo "down"
