"""Starting a command in several processes on this machine, where no launcher did: torchrun's elastic agent, in this process."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from trm.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_USER_ERROR
from trm.ground.cores import cores


def start_ranks(processes: int, module: str, arguments: Sequence[str]) -> int:
    """`python -m MODULE ARGUMENTS` in so many processes that find each other as torchrun's do; returns the command's exit code.

    That of the processes where all stopped for the same reason: 143 where they were preempted, 2 where the input is wrong.
    """
    # each takes a second
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes say themselves what is wrong
    os.environ.pop("HYDRA_FULL_ERROR", None)  # of this process alone: in the others errors are to be a line
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, entrypoint=sys.executable)("-m", module, *arguments)
    except SignalException:
        return EXIT_PREEMPTED
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        return next((code for code in (EXIT_PREEMPTED, EXIT_USER_ERROR) if code in codes), EXIT_FAILED)
    return 0
