#!/usr/bin/env bash
# Start a throw-away Slurm on this machine: 8 pretend hosts worker0..worker7 with 4 TPU chips and 2 GPUs each, with accounting. Run as root.
#   RUN=DIR scripts/dev/slurm_up.sh      then: export SLURM_CONF=DIR/slurm.conf
#   RUN=DIR scripts/dev/slurm_down.sh    stops exactly what this started
# Everything lives in DIR (keys, sockets, database, logs) on loopback ports from BASE_PORT; nothing of the system's own is touched,
# so several can run at once with different RUN and BASE_PORT. NODES, CHIPS and GPUS change the shape.
set -euo pipefail
RUN=${RUN:?set RUN to an empty directory}; RUN=$(realpath -m "$RUN")
nodes=${NODES:-8} chips=${CHIPS:-4} gpus=${GPUS:-2} base=${BASE_PORT:-17000}
last_node=$((nodes - 1)) host=$(hostname -s)
fail() { echo "error: $1" >&2; [ -n "${2:-}" ] && tail -n 5 "$2" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "run as root: Slurm's daemons start jobs as their users"
for program in slurmctld slurmd slurmdbd munged mariadbd; do
  PATH=$PATH:/usr/sbin command -v $program >/dev/null || fail "$program is missing: apt-get install slurm-wlm slurmdbd munge mariadb-server"
done
PATH=$PATH:/usr/sbin
[ ! -e "$RUN/pids" ] || fail "$RUN/pids exists: already up, or not taken down (slurm_down.sh)"

mkdir -p "$RUN"/{state,spool,log,munge,socket,devices,db}
chmod 755 "$RUN" "$RUN"/*; chmod 700 "$RUN/munge"
: > "$RUN/pids"
export SLURM_CONF="$RUN/slurm.conf"

# wait_for SECONDS WHAT COMMAND...: until the command succeeds
wait_for() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "$what did not come up" "$RUN/log/$what.log"
    sleep .1
  done
}
# start NAME COMMAND...: in the background, in a session of its own, its pid recorded
start() {
  local name=$1; shift
  setsid "$@" > "$RUN/log/$name.out" 2>&1 &
  echo $! >> "$RUN/pids"
}

# ---- munge, with a key and a socket of its own
[ -s "$RUN/munge/key" ] || (umask 077; head -c 128 /dev/urandom > "$RUN/munge/key")
munged --force --key-file="$RUN/munge/key" --socket="$RUN/socket/munge" --pid-file="$RUN/munge/pid" \
  --log-file="$RUN/log/munged.log" --seed-file="$RUN/munge/seed" --num-threads=2
cat "$RUN/munge/pid" >> "$RUN/pids"

# ---- settings. gres.conf names one device file per chip and GPU: only then can a job learn which is its own.
: > "$RUN/gres.conf"
for kind in "tpu accel $chips" "gpu nvidia $gpus"; do
  read -r name file count <<< "$kind"
  for ((i = 0; i < count; i++)); do
    [ -e "$RUN/devices/$file$i" ] || mknod "$RUN/devices/$file$i" c 1 3 2>/dev/null || : > "$RUN/devices/$file$i"
  done
  echo "NodeName=worker[0-$last_node] Name=$name File=$RUN/devices/$file[0-$((count - 1))]" >> "$RUN/gres.conf"
done
cat > "$SLURM_CONF" <<E1
ClusterName=pretend_tpus
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((base + 500))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$RUN/socket/munge,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$RUN/state
SlurmdSpoolDir=$RUN/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/%n.pid
SlurmctldLogFile=$RUN/log/slurmctld.log
SlurmdLogFile=$RUN/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,default_queue_depth=1000,requeue_delay=1
GresTypes=tpu,gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=${SLURMD_TIMEOUT_S:-10}
JobRequeue=1
KillWait=5
MinJobAge=3600
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((base + 501))
AccountingStoragePass=$RUN/socket/munge
AccountingStorageTRES=gres/tpu,gres/gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=worker[0-$last_node] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$base-$((base + last_node))] CPUs=8 RealMemory=2000 Gres=tpu:$chips,gpu:$gpus State=UNKNOWN
PartitionName=tpu Nodes=worker[0-$last_node] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=worker[0-$last_node] MaxTime=INFINITE State=UP PriorityTier=10
E1
(umask 077; cat > "$RUN/slurmdbd.conf") <<E2
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((base + 501))
CommunicationParameters=NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$RUN/socket/munge
LogFile=$RUN/log/slurmdbd.log
PidFile=$RUN/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StoragePass=unused
StorageLoc=slurm_accounting
E2

# ---- accounting
[ -d "$RUN/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$RUN/db" \
  --auth-root-authentication-method=socket --skip-test-db > "$RUN/log/mariadb-install.log" 2>&1
start mariadbd mariadbd --no-defaults --user=root --datadir="$RUN/db" --socket="$RUN/socket/db" --skip-networking \
  --pid-file="$RUN/db.pid" --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0
wait_for 30 mariadbd mariadb --no-defaults -uroot -S "$RUN/socket/db" -e 'select 1'
MYSQL_UNIX_PORT="$RUN/socket/db" start slurmdbd slurmdbd -D
wait_for 30 slurmdbd sacctmgr -n show cluster
sacctmgr -i add cluster pretend_tpus >/dev/null 2>&1 || true

# ---- controller and hosts
start slurmctld slurmctld -D -i
wait_for 30 slurmctld sh -c 'scontrol ping | grep -q UP'
for ((i = 0; i < nodes; i++)); do
  mkdir -p "$RUN/spool/worker$i"
  start "worker$i" slurmd -D -N "worker$i"
done
all_idle() { [ "$(timeout 5 sinfo -h -N -p tpu -o %T | grep -c '^idle$')" = "$nodes" ]; }
wait_for 60 slurmctld all_idle
echo "up: $nodes hosts with $chips chips and $gpus GPUs each; export SLURM_CONF=$SLURM_CONF"
