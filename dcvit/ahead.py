"""Work that threads do ahead of who wants it, in order. What they call must let go of Python's lock to gain."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Generic, TypeVar

import torch

AHEAD = 2  # results that are made while the one before them is used
T = TypeVar("T")


@dataclass(frozen=True)
class Job(Generic[T]):
    """A result that is there once all its parts were called, by whomever and in any order, and then `last`."""

    result: T
    parts: Sequence[Callable[[], object]]
    last: Callable[[], object] | None = None


def finished(jobs: Iterator[Job[T]], *, threads: int) -> Generator[T, None, None]:
    """The results of the jobs, in their order; made by so many threads, or here and now by none.

    What a part raises comes out where its result would have come. Closing the iterator ends the threads,
    after the parts that they are at.
    """
    if threads == 0:
        for job in jobs:
            for part in job.parts:
                part()
            if job.last is not None:
                job.last()
            yield job.result
        return
    with ahead(threads) as pool:
        waiting: deque[tuple[T, list[Future[object]]]] = deque()
        try:
            for job in jobs:
                parts = [pool.submit(part) for part in job.parts]
                if job.last is not None:
                    parts.append(pool.submit(_after, tuple(parts), job.last))
                waiting.append((job.result, parts))
                if len(waiting) > AHEAD:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _after(parts: Sequence[Future[object]], last: Callable[[], object]) -> None:
    """Calls `last` after the parts; they came first, so all have been begun, by other threads if not by this one."""
    for part in parts:
        part.result()
    last()


def _next(waiting: "deque[tuple[T, list[Future[object]]]]") -> T:
    result, parts = waiting.popleft()
    for part in parts:
        part.result()
    return result


def ahead(threads: int) -> ThreadPoolExecutor:
    """Threads of which each works on one core: what torch does in one of them is not spread over others."""
    here = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="dcvit")
    all_there = Barrier(threads)

    def alone() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # else the first use would take over what was set last, by anybody
        all_there.wait()

    for begun in [pool.submit(alone) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(here)  # each thread has a number of its own, but new ones get the last that was set
    return pool
