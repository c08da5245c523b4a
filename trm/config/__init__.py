"""The settings of a run: schema, checks, identity."""

from trm.config.backends import BACKENDS, Backend
from trm.config.checks import check_training, check_widths, nearest_batches, register_check, total_steps, validate
from trm.config.identity import defaults, differences, digest, flatten, inference_steps, kept, numerics, resume_conflicts, way_keys
from trm.config.schema import (
    EXACT,
    IGNORE_LABEL,
    LARGEST_COUNT,
    NOTHING,
    NUMBERS,
    PLACE,
    RESULTS,
    SAMPLE_PUZZLES,
    SELECTIONS,
    Config,
    DataConfig,
    EmaConfig,
    EvaluateConfig,
    HardwareConfig,
    InferenceConfig,
    LatentsConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Phase,
    RecipeConfig,
    RecursionConfig,
    TrackingConfig,
    TrainConfig,
    all_keys,
    draws_numbers,
    from_composed,
    from_plain,
    load_yaml,
    local_path,
    register_schema,
    role,
    to_plain,
    unknown_keys,
)
from trm.config.wandb import check_address, check_wandb, shortened
