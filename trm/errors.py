"""Errors that are the user's to mend: each becomes one line on stderr and exit code 2 (see trm/cli.py)."""


class UserError(Exception):
    """The input is wrong. The message is one line that names the key or file and says what to do."""


class ConfigError(UserError):
    """A config key is unknown, out of range or at odds with another key."""


class DataError(UserError):
    """A dataset or a puzzle is missing, malformed or contradicts itself."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another configuration."""
