#!/usr/bin/env bash
# Run one command on every host of a TPU pod without Slurm, in the checkout there: one run on all hosts together.
#   scripts/launch_pod.sh TPU_NAME --zone=ZONE [--project=PROJECT] [--dir=DIR] [--dry-run] -- COMMAND ...
#   scripts/launch_pod.sh my-pod --zone=us-central2-b -- .venv/bin/python -m trm.train experiment=e1_1_baseline hardware=v4_64 run_name=base
# DIR is the checkout on the hosts (default: trm-scaling-study in the home folder). It prints what it will do before it does it;
# --dry-run stops there. Outputs must lie in a folder that all hosts share: only the first one writes, all of them resume from it.
# Each host learns its number (TRM_RANK) and how many there are (TRM_RANKS) from the TPU's metadata server.
set -euo pipefail
usage() { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; echo "error: $1" >&2; exit 2; }

name="" zone="" project="" dir="trm-scaling-study" dry_run=0
while [ $# -gt 0 ]; do
  case $1 in
    --) shift; break ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --dir=*) dir=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -*) usage "$1: no such option" ;;
    *) [ -z "$name" ] || usage "$1: the command comes after --"; name=$1 ;;
  esac
  shift
done
[ -n "$name" ] || usage "TPU_NAME is missing"
[ -n "$zone" ] || usage "--zone=ZONE is missing"
[ $# -gt 0 ] || usage "-- COMMAND is missing"
run_name=0 trains=0 previous=""
for word in "$@"; do
  case "${previous##*/} $word" in
    python*" -m") ;;   # python's own option
    *" -m" | *" --multirun" | *" sweep="* | *" +sweep="*)
      usage "$word: a sweep on every host would train the same jobs in the same folders: start it on one machine with \
hydra/launcher=submitit_slurm or hydra/launcher=ray, or give one run at a time" ;;
    *" trm.train" | *trm-train) trains=1 ;;
    *" run_name="?*) run_name=1 ;;
  esac
  previous=$word
done
[ "$trains" = 0 ] || [ "$run_name" = 1 ] || usage "run_name=NAME is missing: without it every host would name the run by its own clock"

ask='curl -sf -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes'
rank="TRM_RANK=\$($ask/agent-worker-number) && TRM_RANKS=\$($ask/worker-network-endpoints | tr , '\n' | grep -c .)"
remote="cd $(printf %q "$dir") && $rank && export TRM_RANK TRM_RANKS && exec$(printf ' %q' "$@")"
run=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" ${project:+"--project=$project"} --worker=all "--command=$remote")

echo "on every host of $name ($zone):"
echo "  $remote"
echo "by:"
printf ' '; printf ' %q' "${run[@]}"; echo
[ "$dry_run" = 0 ] || exit 0
command -v gcloud >/dev/null || { echo "error: gcloud is not installed: https://cloud.google.com/sdk/docs/install" >&2; exit 2; }
exec "${run[@]}"
