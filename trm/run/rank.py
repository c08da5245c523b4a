"""Which of a job's processes this one is, as whoever started it says in the environment."""

import os

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
