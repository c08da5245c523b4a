"""Which CUDA GPUs this process may use, asked without torch, which takes seconds to import."""

import os
from pathlib import Path

DEVICES = Path("/dev")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs by the names that CUDA_VISIBLE_DEVICES takes: those that it names, else all of the machine by their numbers."""
    told = os.environ.get(VISIBLE)
    if told is not None:
        names = [name.strip() for name in told.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))]  # as CUDA reads it
    return sorted((path.name.removeprefix("nvidia") for path in DEVICES.glob("nvidia[0-9]*")), key=int)
