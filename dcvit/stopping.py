"""Signals that ask a run to stop: they set a flag, and the run saves its state where it can. No torch.

SIGTERM is what schedulers and systems send, SIGUSR1 and SIGUSR2 what they send some time before,
SIGINT is Ctrl-C. Nothing is saved inside of a handler, where the state is anybody's guess.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import signal
from threading import current_thread, main_thread
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def listening(
    asking: tuple[signal.Signals, ...] = ASKING, *, patient: bool = False
) -> Iterator[Callable[[], str]]:
    """A function that tells which signal has asked to stop, by name, and "" while none has.

    A second Ctrl-C does not wait: it is a KeyboardInterrupt (but where `patient`). The handlers from
    before are put back at the end. Only a process's main thread hears signals; in another one nothing changes.
    """
    heard: list[str] = []

    def hear(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and "SIGINT" in heard and not patient:
            raise KeyboardInterrupt
        heard.append(name)

    before = {}
    if current_thread() is main_thread():
        before = {number: signal.signal(number, hear) for number in asking}
    try:
        yield lambda: heard[0] if heard else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
