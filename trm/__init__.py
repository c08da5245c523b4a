"""TRM Scaling Study: train and ablate Tiny Recursive Models (arXiv 2510.04871) on puzzles."""

import os

# Before torch loads libgomp: its threads wait for one another busily for some tens of microseconds, not for milliseconds, in which
# of two runs on the same cores each would burn the time that the other's threads need (docs/explanation/backends.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
