"""A command with the real settings and sweeps but no training: writes a summary as a run does, or misbehaves where told to.

FAKE_JOB is JSON: {"seed=1": "raise" | "user_error" | "exit" | "kill" | "hang" | "meet 2", ...}, by a part of the run's name.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from trm.cli import hydra_command
from trm.config import digest, to_plain
from trm.errors import EXIT_PREEMPTED, DataError
from trm.ground.folder import CONFIG_FILE, write_summary
from trm.ground.signals import StopSignal


def run(cfg):
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    began = time.time()
    if rank == 0:
        OmegaConf.save(OmegaConf.create(to_plain(cfg)), run_dir / CONFIG_FILE)
    tpu = {key: value for key, value in os.environ.items() if key.startswith(("TPU_", "CLOUD_TPU_"))}
    orders = json.loads(os.environ.get("FAKE_JOB", "{}"))
    order = next((what for part, what in orders.items() if part in f"{cfg.run_name},rank={rank}"), "")
    summary = {"status": "completed", "reason": None, "run_name": cfg.run_name, "config_digest": digest(cfg), "steps": 1}
    summary |= {"total_steps": 1, "exact_accuracy": 0.5, "tpu": tpu, "began": began}
    summary |= {"placement": cfg.hardware.placement, "pid": os.getpid(), "cores": len(os.sched_getaffinity(0))}
    summary["slurm"] = {key: value for key, value in os.environ.items() if key.startswith(("SLURM_", "SBATCH_"))}
    summary["gpus"] = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    match order:
        case "raise":
            raise RuntimeError("a bad\nday")
        case "user_error":
            raise DataError("data.path=x is not there")
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":  # until a signal; the next start completes
            marker = run_dir / "hung"
            if not marker.exists():
                with StopSignal() as stop:
                    marker.write_text("")
                    while not stop.requested:
                        time.sleep(0.05)
                    time.sleep(0.5)  # in a step that takes long
                write_summary(run_dir, summary | {"status": "preempted", "steps": 0})
                sys.exit(EXIT_PREEMPTED)
        case "wait":  # as in a collective: for ever
            while True:
                time.sleep(1)
        case order if order.startswith("meet "):  # until so many jobs of the sweep have begun
            while len(list(run_dir.parent.glob(f"*/{CONFIG_FILE}"))) < int(order.split()[1]):
                time.sleep(0.02)
    if rank == 0:
        write_summary(run_dir, summary | {"ended": time.time()})


if __name__ == "__main__":
    hydra_command(run)
