"""Errors that people see: what, where, found, expected, what to do.

Every error a user can cause is a `HarkenError`; the command line prints its message as one line and exits with
`exit_code`. Errors of our own making stay `assert`s. To add one: subclass the nearest class below, and give the
remedy in the message.
"""


class HarkenError(Exception):
    """Base of everything Harken raises on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(HarkenError, ValueError):
    """A wrong argument or a combination of arguments that makes no sense."""

    exit_code = 2


class ConfigError(UsageError):
    """A config value that is unknown, of the wrong type, or in conflict with another."""


class DataError(UsageError):
    """A file or record that cannot be used; the message names file, line or record id."""


class AssetError(HarkenError, RuntimeError):
    """A model or data set that could not be fetched or does not match its checksum."""


class StorageError(HarkenError, OSError):
    """Writing failed (disk full, no permission); what was there before is untouched."""


class ResumeError(UsageError):
    """A run folder that belongs to another config or other inputs; the message lists the differences."""


class SelfTestError(HarkenError, RuntimeError):
    """A start-up self-test failed; the message names the cause."""


class RewardError(HarkenError, RuntimeError):
    """A reward raised, or returned NaN or the wrong number of scores; the message names the prompt."""


class SamplerError(HarkenError, RuntimeError):
    """A foreign sampler did not start, could not be reached, or gave back what cannot be used."""


class DivergenceError(HarkenError, RuntimeError):
    """A loss or gradient stopped being finite; the run stops at its last good checkpoint."""
