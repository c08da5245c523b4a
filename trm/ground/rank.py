"""Which of a job's processes this one is, as the environment says."""

import contextlib
import os
import socket
import subprocess
from typing import NamedTuple

from trm.errors import ConfigError

RANK, RANKS = "TRM_RANK", "TRM_RANKS"  # set by scripts/launch_pod.sh
SUBMITIT = "SUBMITIT_EXECUTOR"
# The variables by which a launcher tells each process: of torchrun, accelerate and deepspeed; srun; Open MPI; MPICH
TORCHRUN, SRUN = ("WORLD_SIZE", "RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
STARTERS = dict([TORCHRUN, SRUN, ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK")])
OF_RANKS = (TORCHRUN, SRUN)  # they may start the ranks of torch's backends
FIRST_PORT, PORTS = 20000, 12000  # a Slurm job's port follows from its number; Linux gives higher ones to outgoing connections
SCONTROL_LIMIT_S = 20


class Rank(NamedTuple):
    """A process of a job, and the address where the processes meet."""

    rank: int
    ranks: int
    local: int  # its number among this host's processes
    address: str
    port: int


def process_rank() -> tuple[int, int]:
    """(rank, ranks) of this process in a job of torchrun, srun, Slurm, submitit or scripts/launch_pod.sh; (0, 1) elsewhere."""
    if RANK in os.environ:
        return _pair(os.environ[RANK], os.environ.get(RANKS, ""), RANK, RANKS, "scripts/launch_pod.sh sets both")
    if SUBMITIT in os.environ:
        rank = os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID") or "0"
        return int(rank), int(os.environ.get("SLURM_NTASKS") or os.environ.get("SUBMITIT_LOCAL_NTASKS") or "1")
    for size, name in OF_RANKS:
        if name in os.environ and os.environ.get(size, "1") not in ("", "0", "1"):
            return _pair(os.environ[name], os.environ[size], name, size, "torchrun and srun set both")
    return 0, 1


def by_torchrun() -> bool:
    """Whether torchrun started this process, perhaps as the only one; torchrun then says how many processes there are."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _pair(rank: str, ranks: str, name: str, size: str, fix: str) -> tuple[int, int]:
    if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
        raise ConfigError(f"{name}={rank} {size}={ranks}: not the number of a process and how many there are: {fix}")
    return int(rank), int(ranks)


def rank_of_launcher() -> Rank:
    """This process among the ranks of torch's backends. Raises ConfigError where the environment does not say where they meet."""
    rank, ranks = process_rank()
    by_slurm = "SLURM_PROCID" in os.environ and "LOCAL_RANK" not in os.environ
    local = os.environ.get("SLURM_LOCALID" if by_slurm else "LOCAL_RANK", str(rank))
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if by_slurm:
        job, step = (os.environ.get(f"SLURM_{name}_ID", "0") for name in ("JOB", "STEP"))
        own = FIRST_PORT + (int(job) * 7 + (int(step) if step.isdecimal() and int(step) < PORTS else 0)) % PORTS
        address, port = address or _first_host(), port or str(own)  # all processes of a job find the same port
    if not address or not (port or "").isdecimal() or not local.isdecimal():
        raise ConfigError(
            f"MASTER_ADDR={address or ''} MASTER_PORT={port or ''} LOCAL_RANK={local}: the environment does not say where the "
            f"{ranks} processes meet: start them by torchrun or srun"
        )
    return Rank(rank, ranks, int(local), address, int(port or 0))


def _first_host() -> str:
    """The address of the host of a Slurm job's first process; the loopback address where the job has one host.

    The network need not know a host's name in Slurm (NodeName). Slurm itself connects to the host's address (NodeAddr).
    """
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or ""
    if os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1")) == "1":
        return "127.0.0.1"
    try:
        name = _scontrol("hostnames", hosts).split()[0]
        with contextlib.suppress(OSError):
            socket.getaddrinfo(name, None)
            return name
        return dict(word.partition("=")[::2] for word in _scontrol("node", name, "--oneliner").split())["NodeAddr"]
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={hosts}: neither the network nor scontrol tells where the first host is: set MASTER_ADDR"
        ) from error


def _scontrol(*words: str) -> str:
    """What `scontrol show` prints."""
    command = ["scontrol", "show", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SCONTROL_LIMIT_S).stdout


def require_ranks(hardware: str, processes: int, *, of_torch: bool = False) -> None:
    """Raise ConfigError where this hardware has several processes, and the environment does not say which of them this one is.

    Every host finds the same error before anything is started or locked; else one host would wait for others that were refused.
    `of_torch`: each process drives one device by torch's own backends, and torchrun may start them.
    """
    ranks = process_rank()[1]
    if of_torch and ranks != processes:
        size, _ = next((pair for pair in OF_RANKS if pair[0] in os.environ), TORCHRUN)
        launched = ranks > 1 or by_torchrun()
        found = f"{size}={ranks} processes were started" if launched else "no launcher says which of them this one is"
        raise ConfigError(
            f"hardware={hardware} needs {processes} process(es), one for each device, and {found}: start it by torchrun or srun "
            "with hardware=gpus or hardware=cpu_ranks, which use as many devices as there are processes, or leave the launcher out"
        )
    if processes not in (1, ranks):
        found = f"the environment names {ranks}" if on_a_pod() else "no launcher says which of them this one is"
        raise ConfigError(
            f"hardware={hardware} needs {processes} processes, one on each host, and {found}: start it by "
            "scripts/launch_pod.sh or hydra/launcher=submitit_slurm, or use hardware=cpu where there are no such devices"
        )


def on_a_pod() -> bool:
    """Whether scripts/launch_pod.sh, torchrun or srun gave every process of a job the same command."""
    return RANK in os.environ or (SUBMITIT not in os.environ and process_rank()[1] > 1)


def refuse_other_starters(*, of_torch: bool = False) -> None:
    """Raise ConfigError where torchrun, mpirun or srun started several processes of one command: each would train the whole run.

    `of_torch`: accept torchrun and srun, since the settings may ask for ranks of torch's backends.
    """
    if RANK in os.environ or SUBMITIT in os.environ:
        return
    for size, rank in STARTERS.items():
        if of_torch and (size, rank) in OF_RANKS:
            continue
        if rank in os.environ and os.environ.get(size, "1") not in ("", "0", "1"):
            raise ConfigError(
                f"{size}={os.environ[size]}: torchrun, mpirun or srun started several processes of this command, but one drives "
                "all devices of a machine: start it once, without them: hardware=v4_8 or cpu_mesh for several devices, "
                "hardware.jobs=N with --multirun for jobs side by side, scripts/launch_pod.sh for several hosts; torchrun and srun "
                "start runs and evaluations with hardware=gpus or cpu_ranks alone"
            )
