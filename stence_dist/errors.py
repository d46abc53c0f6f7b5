"""The errors that a user can cause, and the exit code that each ends a command with.

Messages say what was found, what was expected and how to fix it. They never contain a patient identifier:
a cohort row number, a patient key and a field name say where to look.
"""

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_REFUSED = 2
EXIT_STOPPED = 75


class RefusedError(Exception):
    """Usage, configuration or data that cannot be worked with. Ends a command with exit code 2.

    `quiet` is set on ranks that only repeat what rank 0 reports.
    """

    quiet = False


class ConfigError(RefusedError):
    """A configuration key that is unknown, malformed, or contradicts another one."""


class DataError(RefusedError):
    """A file, cohort table or shard set that cannot be used as it is."""


class SpecMismatchError(DataError):
    """A signal or a set of weights that does not fit the `EcgSpec` it meets."""


class MissingExtraError(RefusedError):
    """An optional package is needed; the message names the command that installs it."""


class CheckFailedError(Exception):
    """The thing that a verify or check command examined is bad. Ends the command with exit code 1."""


class CommonFailureError(RuntimeError):
    """A failure that all ranks have agreed on and raise alike; rank 0 alone reports it."""


class StoppedError(Exception):
    """A run stopped on request after saving; the same command resumes it. Ends the command with exit code 75.

    `terminated`: it was SIGTERM, which may mean one node of several.
    """

    def __init__(self, message: str, *, terminated: bool = False) -> None:
        super().__init__(message)
        self.terminated = terminated
