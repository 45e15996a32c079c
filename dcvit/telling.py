"""What is said while runs are made: a log that can't be written (a full disk, say) costs no run. No torch."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager, suppress
import os
import sys

_failed: set[int] = set()  # of 1 (stdout) and 2 (stderr): what was said there once could not be written


def say(text: str) -> None:
    """Prints on stdout at once, also into a file or pipe, if that can be written."""
    with dropped():
        print(text, flush=True)


def note(text: str) -> None:
    """Says on stderr what went wrong and was borne, if that can be written."""
    with dropped(2):
        print(f"note: {text}", file=sys.stderr, flush=True)


@contextmanager
def dropped(stream: int = 1) -> Iterator[None]:
    """What is printed inside is dropped where it can't be written; of stdout stderr says so, once."""
    try:
        yield
    except OSError as error:
        if stream not in _failed:
            _failed.add(stream)
            atexit.register(_emptied, stream)
            if stream == 1:
                note(
                    f"what is printed can't be written ({error.strerror or error}) and is dropped. The runs go on"
                )


def _emptied(stream: int) -> None:
    """Keeps Python from ending with code 120 because of what it still has in its buffer for a stream."""
    file = sys.stdout if stream == 1 else sys.stderr
    try:
        file.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())
            os.close(nowhere)
