"""The settings of a run: schema, checks, identity."""

from trm.config.backends import BACKENDS, Backend
from trm.config.checks import (
    check_address,
    check_training,
    check_wandb,
    check_widths,
    nearest_batches,
    register_check,
    shortened,
    total_steps,
    validate,
)
from trm.config.evaluation import InferenceConfig
from trm.config.identity import defaults, differences, digest, flatten, inference_steps, kept, numerics, resume_conflicts, way_keys
from trm.config.keys import EXACT, IGNORE_LABEL, LARGEST_COUNT, NOTHING, NUMBERS, PLACE, RESULTS, SAMPLE_PUZZLES, key
from trm.config.network import (
    EmaConfig,
    LatentsConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Phase,
    RecursionConfig,
    draws_numbers,
)
from trm.config.reading import from_composed, from_plain, load_yaml, local_path, register_schema, unknown_keys
from trm.config.running import DataConfig, HardwareConfig, TrackingConfig, TrainConfig
from trm.config.schema import (
    TASKS,
    Config,
    all_keys,
    data_settings,
    default_config,
    imported_task,
    keys_of,
    role,
    task_settings,
    to_plain,
    without_others,
)
