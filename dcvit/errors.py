"""What can go wrong on the user's side, and the exit code that says so.

A plain ValueError is a wrong argument (exit code 2).
"""

from pathlib import Path

OK = 0
RUN_FAILED = 1
USAGE = 2
DATA_OR_ENVIRONMENT = 3
DIVERGED = 4
NOT_REPRODUCED = 5
RESUMABLE = 75  # the state is saved: start me again


class DataError(ValueError):
    """The images are not what a run needs: what was found, what is needed, what to do."""


class EnvironmentProblem(ValueError):
    """This machine lacks something: a device, a writable folder, room on the disk."""


def unwritable(folder: Path, error: OSError) -> EnvironmentProblem:
    """What to say when a folder for results can't be written."""
    return EnvironmentProblem(
        f"{folder} can't be written ({error.strerror or error}): make room there, or give another folder with "
        "--out. Finished runs keep their records"
    )


class Diverged(ArithmeticError):
    """The loss or the gradient of a step was not finite; the state before that step was kept."""


class Paused(Exception):
    """A run was told to stop before its end; its state was saved, and the same call goes on from there."""


class RankLost(RuntimeError):
    """Another process of this run died or hangs; the run can be started again from its last saved state."""
