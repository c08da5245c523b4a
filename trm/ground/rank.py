"""Which of a job's processes this one is, as whoever started it says in the environment."""

import os

from trm.errors import ConfigError

RANK, RANKS = "TRM_RANK", "TRM_RANKS"  # set by scripts/launch_pod.sh


def process_rank() -> tuple[int, int]:
    """(rank, ranks) of this process in a job that Slurm, submitit or scripts/launch_pod.sh started; (0, 1) elsewhere."""
    if RANK in os.environ:
        rank, ranks = os.environ[RANK], os.environ.get(RANKS, "")
        if not (rank.isdecimal() and ranks.isdecimal() and int(rank) < int(ranks)):
            raise ConfigError(
                f"{RANK}={rank} {RANKS}={ranks}: not the number of a host and how many there are: scripts/launch_pod.sh sets both"
            )
        return int(rank), int(ranks)
    rank = os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID") or "0"
    ranks = os.environ.get("SLURM_NTASKS") or os.environ.get("SUBMITIT_LOCAL_NTASKS") or "1"
    return (int(rank), int(ranks)) if "SUBMITIT_EXECUTOR" in os.environ else (0, 1)


def require_ranks(hardware: str, processes: int) -> None:
    """Raise ConfigError where the hardware of this name has several processes, and nobody has told this one which of them it is.

    On every host alike, and before anything is started or locked: else one would wait for the others, which have been refused.
    """
    ranks = process_rank()[1]
    if processes not in (1, ranks):
        told = f"the environment tells of {ranks}" if on_a_pod() else "nothing tells which of them this one is"
        raise ConfigError(
            f"hardware={hardware} needs {processes} processes, one on each host, and {told}: start it by "
            "scripts/launch_pod.sh or hydra/launcher=submitit_slurm, or use hardware=cpu where there are no such devices"
        )


def on_a_pod() -> bool:
    """Whether scripts/launch_pod.sh started the same command on every host."""
    return RANK in os.environ


# What starts a command several times says so in these: torchrun, accelerate and deepspeed; Open MPI; MPICH; srun
STARTERS = {
    "WORLD_SIZE": "RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
}


def refuse_other_starters() -> None:
    """Raise ConfigError in one of several processes that torchrun, mpirun or srun made of one command: each would train the run."""
    if RANK in os.environ or "SUBMITIT_EXECUTOR" in os.environ:
        return
    for size, rank in STARTERS.items():
        if rank in os.environ and os.environ.get(size, "1") not in ("", "0", "1"):
            raise ConfigError(
                f"{size}={os.environ[size]}: torchrun, mpirun or srun started several processes of this command, but one drives "
                "all devices of a machine: start it once, without them: hardware=v4_8 or cpu_mesh for several devices, "
                "hardware.jobs=N with --multirun for jobs side by side, scripts/launch_pod.sh for several hosts"
            )
