"""What a caller can cause: every class here carries one clear line for a person."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InvalidInputError",
    "NonFiniteGradientError",
    "OutOfTimeError",
    "shortened",
]


def shortened(text: str) -> str:
    """As much of what somebody gave as one line shows."""
    return text if len(text) <= 80 else text[:77] + "..."


class InvalidInputError(ValueError):
    """Bad input of any kind. Its text is one line; the command line exits with code 2."""


class ConfigError(InvalidInputError):
    """A configuration value that is not allowed.

    Args:
        field: name of the field, as in :class:`gcsr.config.TrialConfig`.
        value: what was given.
        allowed: what would have been allowed, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: {shortened(repr(value))} is not allowed; expected {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.allowed)  # survives the way back from a worker


class DataError(InvalidInputError):
    """A data set that is missing, damaged or of the wrong shape."""


class CheckpointError(InvalidInputError):
    """A checkpoint that cannot be read, or that belongs to another configuration."""


class NonFiniteGradientError(ArithmeticError):
    """A gradient held NaN or infinity: an error of the run, never a vote on coherence."""


class OutOfTimeError(Exception):
    """A training was stopped at its deadline; its checkpoint holds all epochs so far."""
