"""Which of a job's processes this one is, as whoever started it says in the environment."""

import os

from trm.errors import ConfigError

RANK, RANKS = "TRM_RANK", "TRM_RANKS"  # set by scripts/launch_pod.sh


def process_rank() -> tuple[int, int]:
    """(rank, ranks) of this process in a job that Slurm, submitit or scripts/launch_pod.sh started; (0, 1) elsewhere."""
    if RANK in os.environ:
        return int(os.environ[RANK]), int(os.environ.get(RANKS, "1"))
    rank = os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID") or "0"
    ranks = os.environ.get("SLURM_NTASKS") or os.environ.get("SUBMITIT_LOCAL_NTASKS") or "1"
    return (int(rank), int(ranks)) if "SUBMITIT_EXECUTOR" in os.environ else (0, 1)


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
