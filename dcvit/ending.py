"""How a command ends: its exit code, and the sentence that says why. No torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
import sys

from dcvit.errors import (
    DATA_OR_ENVIRONMENT,
    DIVERGED,
    OK,
    RESUMABLE,
    RUN_FAILED,
    USAGE,
    DataError,
    EnvironmentProblem,
    RankLost,
    unwritable,
)
from dcvit.executing import HOPELESS
from dcvit.launch import LATER
from dcvit.ledger import UnusableRecord
from dcvit.runs import Outcome


def guarded(command: Callable[[], int], *, out: Path) -> int:
    """The exit code of a command; what a user can do something about is said in one line."""
    try:
        return command()
    except (DataError, EnvironmentProblem, UnusableRecord) as error:
        return complain(error, DATA_OR_ENVIRONMENT)
    except OSError as error:
        if error.errno in HOPELESS:
            return complain(unwritable(out, error), DATA_OR_ENVIRONMENT)
        return complain(f"{error.filename or out}: {error.strerror or error}", DATA_OR_ENVIRONMENT)
    except RankLost as error:
        return complain(error, RUN_FAILED)
    except ValueError as error:
        return complain(error, USAGE)
    except KeyboardInterrupt:
        return complain("stopped; finished runs keep their records, the same command goes on from there", 130)


def complain(problem: object, code: int) -> int:
    """Says what is wrong and returns the code."""
    print(f"error: {problem}", file=sys.stderr)
    return code


def exit_code(outcomes: Sequence[Outcome], *, unprobed: int, late: int, queued: bool = False) -> int:
    """The code, after saying what it is about: `unprobed` patch probes failed, `late` were not begun in time.

    With `queued`, what is not finished is in a queue and goes on by itself.
    """
    failed = [outcome for outcome in outcomes if outcome.record is None and outcome.kind not in LATER]
    later = [outcome for outcome in outcomes if outcome.kind in LATER]
    if hopeless := [outcome for outcome in failed if outcome.kind == "environment"]:
        return complain(hopeless[0].problem, DATA_OR_ENVIRONMENT)
    if failed or unprobed:
        return _failed(failed, unprobed, hint="see above" if queued else "the same command tries again")
    if not later and not late:
        return OK
    if queued and later:
        return complain(f"{len(later)} runs are not finished; the same command picks them up", RESUMABLE)
    if not late and all(outcome.kind == "postponed" for outcome in outcomes):
        # nothing was done, and the same call would do nothing again
        return complain(f"{later[0].problem}. Give more --minutes", USAGE)
    paused = sum(outcome.kind == "paused" for outcome in later)
    why = "stopped" if any(outcome.kind == "stopped" for outcome in later) else "stopped, or out of time"
    return complain(
        f"{why}: {paused} runs saved in the middle, {len(later) - paused} not begun, {late} not probed; "
        "the same command goes on",
        RESUMABLE,
    )


def _failed(failed: Sequence[Outcome], unprobed: int, *, hint: str) -> int:
    own = [outcome for outcome in failed if not outcome.problem.startswith("not started")]
    count = len(failed) + unprobed
    many = f"{count} run{'s' if count > 1 else ''}"
    if not unprobed and all(outcome.kind == "diverged" for outcome in own):
        return complain(
            f"{many} without a record: what diverged would do so again; change the recipe", DIVERGED
        )
    return complain(f"{many} failed; {hint}", RUN_FAILED)
