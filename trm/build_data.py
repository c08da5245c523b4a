"""`python -m trm.build_data data=NAME ...`: build the dataset folder `data.path`.

Published datasets are read from `data.train_csv` and `data.test_csv`, or downloaded if these are not given. All other datasets are
generated.
"""

from trm.config import Config
from trm.data.build import build_dataset


def run(cfg: Config) -> None:
    """Build, or find built, the dataset of these settings, and say what it is."""
    print(build_dataset(cfg.data))


if __name__ == "__main__":
    from trm.cli import hydra_command

    hydra_command(run, run_folder=False)
