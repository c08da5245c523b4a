import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of tests/

from running import TINY, run

# Long enough to be hurt on the way, with a checkpoint at every fifth step.
FAULTY = [*TINY, "train.max_steps=30", "train.eval_every_steps=10"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A working directory in which `outputs/whole` was trained by FAULTY without a fault."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, "trm.train", *FAULTY, "run_name=whole")
    return folder
