#!/usr/bin/env bash
# The tests that need a Slurm: installs it by apt where it is missing, starts one of eight pretend hosts in a temporary folder,
# runs tests/slurm (arguments go to pytest), and stops it again. Run as root.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin
for program in sbatch slurmctld slurmdbd munged mariadbd; do
  if ! command -v $program >/dev/null; then
    echo "installing Slurm ($program is missing) ..."
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # the packages would start daemons of their own where an init system runs: this one needs none of them
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap 'rm -f $policy' EXIT; fi
    apt-get install -qq -y --no-install-recommends slurm-wlm slurmdbd munge mariadb-server >/dev/null
    if [ -n "$(trap -p EXIT)" ]; then rm -f $policy; trap - EXIT; fi
    break
  fi
done

RUN=$(mktemp -d /tmp/pretend-tpus.XXXXXX); export RUN
trap 'WIPE=$([ -n "${KEEP:-}" ] && echo 0 || echo 1) scripts/dev/slurm_down.sh' EXIT   # KEEP=1 keeps its logs
scripts/dev/slurm_up.sh
export SLURM_CONF="$RUN/slurm.conf"
python=.venv/bin/python; [ -x "$python" ] || python=python
"${PYTHON:-$python}" -m pytest tests/slurm "$@"
