"""Exit codes and the errors that carry them.

Every error that a person can cause is one line: where, what is wrong, what to write instead.
"""

DONE = 0
INTERNAL = 1
CONFIG = 2
DATA = 3
CHECKPOINT = 4
NUMERIC = 5
CLUSTER = 6
STORAGE = 7
MEMORY = 8
STOPPED = 75
"""A signal asked for the end and everything is saved: run the same command to continue."""
WATCHDOG = 124
INTERRUPTED = 130


class JaxlmError(Exception):
    """An error with an exit code. `where` is a file:line, a key or a path; `what` says the rest."""

    code = INTERNAL

    def __init__(self, where: str, what: str):
        super().__init__(f"{where}: {what}")
        self.where, self.what = where, what

    def __reduce__(self) -> tuple[type["JaxlmError"], tuple[str, str]]:
        """How it goes from one process to another."""
        return type(self), (self.where, self.what)


class ConfigError(JaxlmError):
    """A key, a value or a combination that cannot be run."""

    code = CONFIG


class DataError(JaxlmError):
    """A file, a record or a tokenizer that cannot be used."""

    code = DATA


class CheckpointError(JaxlmError):
    """A checkpoint, weights or a run directory that cannot be used or failed verification."""

    code = CHECKPOINT


class NumericError(JaxlmError):
    """Gradients that stay infinite or NaN."""

    code = NUMERIC


class ClusterError(JaxlmError):
    """A host or the coordinator that is missing or differs."""

    code = CLUSTER


class StorageError(JaxlmError):
    """A disk that is full, read-only or gone."""

    code = STORAGE


class WatchdogError(JaxlmError):
    """Nothing was finished for too long."""

    code = WATCHDOG


class OutOfMemoryError(JaxlmError):
    """The device has not enough memory for this step."""

    code = MEMORY


class StoppedError(JaxlmError):
    """A signal asked for the end; what is done is kept."""

    code = STOPPED
