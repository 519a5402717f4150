"""Errors that a user can act on; anything else that is raised is a bug and keeps its traceback."""

from __future__ import annotations


class XfelprocError(Exception):
    """Base of the errors xfelproc raises on purpose."""

    exit_code = 1


class ConfigError(XfelprocError, ValueError):
    """The job is wrong: nothing was started (exit code 2)."""

    exit_code = 2


class DataError(XfelprocError, ValueError):
    """A file or frame cannot be used.

    Parameters
    ----------
    message
        What is wrong, with the value, and what to do next.
    path
        File the error belongs to.
    frame
        Index of the frame in that file (from 0), or None if the whole file is concerned.
    """

    def __init__(self, message: str, path: object = None, frame: int | None = None) -> None:
        self.message = message
        self.path = None if path is None else str(path)
        self.frame = frame
        super().__init__(message, self.path, frame)

    def __str__(self) -> str:
        if self.path is None:
            return self.message
        where = self.path if self.frame is None else f"{self.path} frame {self.frame}"
        return f"{where}: {self.message}"


class NothingLeftError(DataError):
    """All data were left out by what the job asks for; says what took how many."""


class DamagedPartError(DataError):
    """A file that a run made for itself, on the way to its results, is missing or damaged: it can be made again."""


class OutputError(XfelprocError, OSError):
    """The run directory cannot be written; what was published before stays valid."""


class QueueError(XfelprocError, RuntimeError):
    """The batch system does not answer, or refuses; says what it said."""


class RunDirectoryError(ConfigError):
    """The run directory holds something that this job must not touch."""


class WorkersDieError(XfelprocError):
    """Workers die again and again for a reason that is no frame's: what is published stays valid."""


class JobLostError(XfelprocError):
    """A worker died whose driver cannot start another: the same command goes on (exit code 75, as after a wall-time)."""

    exit_code = 75
