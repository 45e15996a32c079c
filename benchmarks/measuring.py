"""How the benchmarks measure.

Two things are compared in one process, in rounds that take them in turn, since machines differ and move while
one looks: what counts is the ratio. A peer is the code that people use today; a bound is the time that bytes,
multiplications or decoding alone would take at the speed measured in the same run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import comb, log
from statistics import fmean, median, quantiles
from time import perf_counter, process_time
from typing import Any, Literal

from dcvit.cost import multiply_adds
from dcvit.recipe import Recipe

Call = Callable[[], object]
Clock = Literal["wall", "cpu"]
TICK = 1e-9  # seconds: less is what a clock can't tell from nothing


# --- time ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of each round, by the clock on the wall and of this process's cores together."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def by(self, clock: Clock) -> tuple[float, ...]:
        """By one of them."""
        return self.wall if clock == "wall" else self.cpu


def in_turn(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Numbers of rounds, from 0, and names. Every other round takes them in reverse, so that none always comes after
    the same one.

    >>> list(in_turn("ab", 2))
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    there = list(names)
    for number in range(rounds):
        yield from ((number, name) for name in (there if number % 2 == 0 else reversed(there)))


def interleaved(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    warmup: int = 1,
    wait: Call = lambda: None,
    clocks: tuple[Callable[[], float], Callable[[], float]] = (perf_counter, process_time),
) -> dict[str, Times]:
    """Seconds of every call in every round, in turn, after `warmup` rounds that do not count.

    `wait` is called before a clock is read: on a GPU torch.cuda.synchronize.
    """
    wall, cpu = clocks
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number, name in in_turn(calls, warmup + rounds):
        wait()
        begun = wall(), cpu()
        calls[name]()
        wait()
        if number >= warmup:
            taken[name].append((wall() - begun[0], cpu() - begun[1]))
    return {name: times_of(both) for name, both in taken.items()}


def times_of(rounds: Iterable[tuple[float, float]]) -> Times:
    """Of seconds by the clock on the wall and of the processor, a round each."""
    both = list(rounds)
    return Times(wall=tuple(wall for wall, _ in both), cpu=tuple(cpu for _, cpu in both))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median, and between which two values the true one lies with probability `coverage` or more."""

    middle: float
    low: float
    high: float
    coverage: float


def interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """The median of independent values with bounds from their order alone, whatever their distribution.

    The true median lies between the k-th lowest and the k-th highest of n unless n - k + 1 or more fall on one side
    of it: coverage = 1 - 2 sum_{i < k} C(n, i) / 2^n. The largest k with `level` is taken; below six values there is
    none, and lowest and highest are given with what coverage they have.

    >>> interval([3, 1, 2, 5, 4, 6, 7, 8])
    Interval(middle=4.5, low=1, high=8, coverage=0.9921875)
    """
    ordered, n = sorted(values), len(values)

    def coverage(k: int) -> float:
        return 1 - 2 * sum(comb(n, i) for i in range(k)) / 2**n

    best = max((k for k in range(1, (n + 1) // 2 + 1) if coverage(k) >= level), default=1)
    return Interval(
        middle=median(ordered), low=ordered[best - 1], high=ordered[n - best], coverage=coverage(best)
    )


def paired(one: Sequence[float], other: Sequence[float]) -> Interval:
    """one / other, round by round: what slows a whole round cancels. For differences of a few per cent."""
    return interval([a / b for a, b in zip(one, other, strict=True)])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value three times that."""
    if len(values) == 1:
        return (values[0],) * 3
    lower, middle, upper = quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power with which seconds grow with size, by least squares of their logarithms.

    >>> round(exponent([1, 2, 4, 8], [3, 12, 48, 192]), 6)
    2.0
    """
    x, y = [log(size) for size in sizes], [log(taken) for taken in seconds]
    mean_x, mean_y = fmean(x), fmean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


@contextmanager
def one_thread() -> Iterator[None]:
    """What torch does on the CPU is done by one core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- bounds --------------------------------------------------------------------------------


def copy_rate(device: str = "cpu", *, size: int = 1 << 27, rounds: int = 5) -> float:
    """Bytes a second, read and written counted both, of a copy into memory that is there already: the byte bound's
    denominator. By a core where the device is a CPU."""
    import torch

    with one_thread():
        source = torch.ones(size // 4, device=device)
        target = torch.empty_like(source).copy_(source)
        return 2 * size / _quickest(lambda: target.copy_(source), rounds, device)


def gemm_rate(
    device: str = "cpu", *, dtype: str = "float32", side: int | None = None, rounds: int = 5
) -> float:
    """Floating-point operations a second of a product of two square matrices: the flop bound's denominator. By a core
    where the device is a CPU."""
    import torch

    side = side or (1024 if device == "cpu" else 8192)  # until a larger one gains nothing
    with one_thread():
        left, right = (torch.ones(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
        out = left @ right
        return 2 * side**3 / _quickest(lambda: torch.mm(left, right, out=out), rounds, device)


def multiplying(recipe: Recipe, rate: float) -> float:
    """Seconds that an image's multiplications alone take in a training step, at so many operations a second.

    Two operations a multiply-add, in the forward pass and twice as many in the backward one; patch embedding and
    classifier are left out.
    """
    return 6 * multiply_adds(recipe.backbone, recipe.resolution) / rate


def _quickest(call: Call, rounds: int, device: str) -> float:
    """A bound is what the machine can do, so the best of the rounds."""
    return min(interleaved({"": call}, rounds=rounds, wait=waiter(device))[""].wall)


def waiter(device: str) -> Call:
    """What waits for a device to have done all that it was told."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


# --- results -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """Ours against a peer and against a bound, in seconds of the unit ("a batch of 256", "an image")."""

    what: str  # a few words: what was done, at which size
    unit: str
    peer: str  # who it is compared with
    peer_seconds: float
    ours_seconds: float
    ratio: float  # peer over ours: how many times as fast we are
    quartiles: tuple[float, float]  # of the ratio, round by round
    bound: float  # seconds that `bound_of` alone would take
    bound_of: str
    fraction: float  # of the bound reached: bound over ours
    rounds: int
    clock: Clock

    def as_data(self) -> dict[str, Any]:
        """For `extra_info["results"]`."""
        return asdict(self)


def result_of(
    times: Mapping[str, Times],
    *,
    peer: str,
    ours: str,
    what: str,
    unit: str,
    bound: float,
    bound_of: str,
    per: float = 1.0,
    clock: Clock = "wall",
) -> Result:
    """The result of two of the interleaved calls, by the medians of their rounds; `per` units were done in a call.

    `bound` is in seconds of one unit.
    """
    theirs, mine = ([max(taken, TICK) / per for taken in times[side].by(clock)] for side in (peer, ours))
    lower, _, upper = spread([a / b for a, b in zip(theirs, mine, strict=True)])
    return Result(
        what=what,
        unit=unit,
        peer=peer,
        peer_seconds=median(theirs),
        ours_seconds=median(mine),
        ratio=median(theirs) / median(mine),
        quartiles=(lower, upper),
        bound=bound,
        bound_of=bound_of,
        fraction=bound / median(mine),
        rounds=len(mine),
        clock=clock,
    )


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How the cost of a unit ("an image", "a call") grows with a size."""

    what: str
    unit: str
    along: str  # the size's name
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]  # of a unit
    exponent: float  # 1: of twice the size a unit takes twice as long; 0: as long

    def as_data(self) -> dict[str, Any]:
        """For `extra_info["growth"]`."""
        return asdict(self)


def growth_of(
    times: Sequence[Times],
    *,
    what: str,
    unit: str,
    along: str,
    sizes: Sequence[float],
    per: Sequence[float],
    clock: Clock = "wall",
) -> Growth:
    """By the medians of the rounds at each size; `per` units were done in a call."""
    seconds = tuple(
        max(median(each.by(clock)), TICK) / number for each, number in zip(times, per, strict=True)
    )
    return Growth(
        what=what,
        unit=unit,
        along=along,
        sizes=tuple(sizes),
        seconds=seconds,
        exponent=exponent(sizes, seconds),
    )
