"""From a few seeds to an interval and a word: the rule behind every verdict. No torch.

A few runs say little about their own spread, so the standard deviation is pooled over all
cells of a table, with a weak prior that lets one seed say little instead of nothing:

    s^2 = (4 prior^2 + sum (n_i - 1) s_i^2) / (4 + sum (n_i - 1)),    df = 4 + sum (n_i - 1)

Two questions are asked, each of which may stay open. Is a printed number reproduced: does the
mean lie within a margin of it (two one-sided t tests, Schuirmann 1987)? Does a claim hold: is a
contrast of our own cells above 0 (one one-sided t test), corrected for the number of claims
(Holm 1979)? Simulated error rates of the rule: `tests/test_error_rates.py`.

Spreads and estimates take arrays: seeds lie along the first axis, what follows is carried along.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit  # scipy.stats has the same and takes a second to import

NumberWord = Literal["reproduced", "below", "above", "undecided"]
ClaimWord = Literal["holds", "holds, smaller than half", "contradicted", "undecided"]

ALPHA = 0.05  # of every one-sided test
PRIOR_DF = 4  # what the prior counts for, in degrees of freedom
MOST_SEEDS = 1000  # beyond this many, nobody will decide anything


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Run-to-run standard deviation, and how well it is known."""

    sd: Any  # float, or an array of simulated ones
    df: float
    cells: int  # how many it was pooled over

    def with_seeds(self, seeds: int) -> "Spread":
        """The same spread, known as well as `seeds` runs of every cell would make it known."""
        return Spread(sd=self.sd, df=PRIOR_DF + self.cells * (seeds - 1), cells=self.cells)


def pooled_spread(cells: Iterable[Sequence[float] | np.ndarray], *, prior: float) -> Spread:
    """The spread of runs around the means of their cells; cells are lists of values, one a seed.

    Cells without a value count for nothing, those of one value for no degree of freedom.

    >>> spread = pooled_spread([[72.0, 72.2], [79.8]], prior=0.15)
    >>> round(spread.sd, 4), spread.df, spread.cells
    (0.1483, 5, 2)
    """
    arrays = [np.asarray(cell, dtype=float) for cell in cells]
    arrays = [cell for cell in arrays if len(cell)]
    freedoms = [len(cell) - 1 for cell in arrays]
    squares = sum(((cell - cell.mean(axis=0)) ** 2).sum(axis=0) for cell in arrays)
    df = PRIOR_DF + sum(freedoms)
    sd = np.sqrt((PRIOR_DF * prior**2 + squares) / df)
    return Spread(sd=_plain(sd), df=df, cells=len(arrays))


def _plain(value: Any) -> Any:
    """One number as a float; an array as it is."""
    return float(value) if np.ndim(value) == 0 else value


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A difference between means, with its standard error."""

    value: Any
    error: Any
    df: float

    def lower(self, level: float) -> Any:
        """The bound that the true value lies above with confidence `level`, one-sided."""
        return self.value - stdtrit(self.df, level) * self.error

    def upper(self, level: float) -> Any:
        """The bound that the true value lies below with confidence `level`, one-sided."""
        return self.value + stdtrit(self.df, level) * self.error

    def p_above(self, bound: float) -> Any:
        """One-sided p-value of "the true value is at most `bound`": small where it is above."""
        return stdtr(self.df, (bound - self.value) / self.error)

    def p_below(self, bound: float) -> Any:
        """One-sided p-value of "the true value is at least `bound`": small where it is below."""
        return stdtr(self.df, (self.value - bound) / self.error)


# --- a printed number ----------------------------------------------------------------------


def difference_from_print(
    values: Sequence[float] | np.ndarray, printed: float, spread: Spread, *, rounding: float
) -> Estimate:
    """Our mean minus the printed value, which is one run of somebody else, rounded to steps of `rounding`.

    SE^2 = s^2 (1 / n + 1) + rounding^2 / 12
    """
    values = np.asarray(values, dtype=float)
    return _difference_from_print(_plain(values.mean(axis=0) - printed), len(values), spread, rounding)


def _difference_from_print(difference: Any, seeds: int, spread: Spread, rounding: float) -> Estimate:
    error = _plain(np.sqrt(spread.sd**2 * (1 / seeds + 1) + rounding**2 / 12))
    return Estimate(value=difference, error=error, df=spread.df)


def number_word(estimate: Estimate, *, delta: float) -> NumberWord:
    """`reproduced` if the 90 % interval lies within -+delta, `below` or `above` if it lies wholly outside.

    >>> number_word(Estimate(value=0.1, error=0.1, df=20), delta=0.5)
    'reproduced'
    """
    low, high = estimate.lower(1 - ALPHA), estimate.upper(1 - ALPHA)
    if -delta < low and high < delta:
        return "reproduced"
    if high < -delta:
        return "below"
    return "above" if low > delta else "undecided"


def seeds_for_number(difference: float, spread: Spread, *, rounding: float, delta: float) -> int | None:
    """How many seeds of every cell would decide on a number, should mean and spread stay; None if too many."""

    def decided(seeds: int) -> bool:
        estimate = _difference_from_print(difference, seeds, spread.with_seeds(seeds), rounding)
        return number_word(estimate, delta=delta) != "undecided"

    return _fewest(decided)


# --- a contrast of our own cells -----------------------------------------------------------


def contrast(terms: Sequence[tuple[float, Sequence[float] | np.ndarray]], spread: Spread) -> Estimate:
    """sum_k c_k mean_k of terms (c_k, values of cell k), with SE^2 = s^2 sum c_k^2 / n_k.

    >>> gain = contrast([(1, [80.5, 80.4]), (-1, [79.8])], Spread(sd=0.15, df=36, cells=16))
    >>> round(gain.value, 2), round(gain.error, 4)
    (0.65, 0.1837)
    """
    means = [(c, np.asarray(values, dtype=float).mean(axis=0), len(values)) for c, values in terms]
    value = _plain(sum(c * mean for c, mean, _ in means))
    return Estimate(value=value, error=spread.sd * _length([(c, n) for c, _, n in means]), df=spread.df)


def _length(terms: Sequence[tuple[float, int]]) -> float:
    return float(np.sqrt(sum(c**2 / n for c, n in terms)))


@dataclass(frozen=True, kw_only=True)
class Exceeds:
    """What a contrast has to do: be above `bound`. `size` is how large the paper says it is, if it does."""

    bound: float = 0.0
    size: float | None = None

    def p(self, estimate: Estimate) -> Any:
        """p-value of the contrary; the claim holds where it is small."""
        return estimate.p_above(self.bound)

    def p_contrary(self, estimate: Estimate) -> Any:
        """p-value of the claim at half its size (no size: at its bound); contradicted where it is small."""
        half = self.bound if self.size is None else self.bound + (self.size - self.bound) / 2
        return estimate.p_below(half)


@dataclass(frozen=True, kw_only=True)
class StaysWithin:
    """What a contrast has to do: lie within -+delta of 0."""

    delta: float

    def p(self, estimate: Estimate) -> Any:
        """The larger p-value of the two one-sided tests."""
        return np.maximum(estimate.p_above(-self.delta), estimate.p_below(self.delta))

    def p_contrary(self, estimate: Estimate) -> Any:
        """p-value of "within": small where the contrast lies wholly outside."""
        return np.minimum(estimate.p_below(-self.delta), estimate.p_above(self.delta))


Question = Exceeds | StaysWithin


def claim_word(p: float, p_contrary: float) -> ClaimWord:
    """The word for a claim from its p-value, corrected already, and that of the contrary.

    Both are small only where the paper gives a size: the effect is there, and smaller than half of it.

    >>> claim_word(0.01, 0.9), claim_word(0.01, 0.02), claim_word(0.9, 0.02), claim_word(0.3, 0.3)
    ('holds', 'holds, smaller than half', 'contradicted', 'undecided')
    """
    holds, contrary = p <= ALPHA, p_contrary <= ALPHA
    if holds:
        return "holds, smaller than half" if contrary else "holds"
    return "contradicted" if contrary else "undecided"


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the given order: max over j <= i of (m - j) p_(j), j from 0.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def seeds_for_claim(
    value: float,
    coefficients: Sequence[float],
    spread: Spread,
    question: Question,
    *,
    claims: int,
    parts: int = 1,
) -> int | None:
    """How many seeds of every cell would decide on a contrast, should value and spread stay; None if too many.

    To hold it must pass the first of Holm's levels, ALPHA / claims, with which the claim holds whatever the others
    do; to be contradicted ALPHA / parts, as one of the contrasts of its claim.
    """

    def decided(seeds: int) -> bool:
        known = spread.with_seeds(seeds)
        error = known.sd * _length([(c, seeds) for c in coefficients])
        estimate = Estimate(value=value, error=error, df=known.df)
        return question.p(estimate) <= ALPHA / claims or question.p_contrary(estimate) <= ALPHA / parts

    return _fewest(decided)


def _fewest(decided: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds that decides, by bisection: more seeds only narrow an interval."""
    if not decided(MOST_SEEDS):
        return None
    low, high = 0, MOST_SEEDS  # `high` decides, `low` does not
    while high - low > 1:
        middle = ceil((low + high) / 2)
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


# --- two networks, image by image ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """On how many images two networks are both right, only the first, only the second, neither."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def disagreement(self) -> float:
        """The share of images, in percent, on which one is right and the other wrong."""
        images = self.both + self.first + self.second + self.neither
        return 100 * (self.first + self.second) / images

    @property
    def mcnemar(self) -> float:
        """Exact two-sided p-value of "both networks are as often right as each other" (McNemar 1947).

        It is about these two networks and not about what trained them: another seed is another network.
        """
        fewer, differing = min(self.first, self.second), self.first + self.second
        return min(1.0, 2 * float(bdtr(fewer, differing, 0.5)))


def agreement(first: str, second: str, images: int) -> Agreement:
    """Compares which images two runs got right, as records hold it: packed bits, in hex.

    ValueError if either has bits for another number of images, counted in bytes.

    >>> compared = agreement("c0", "a0", images=4)  # right are images 0, 1 and images 0, 2
    >>> compared.disagreement, compared.mcnemar
    (50.0, 1.0)
    """
    a, b = _bits(first, images), _bits(second, images)
    return Agreement(
        both=int((a & b).sum()),
        first=int((a & ~b).sum()),
        second=int((~a & b).sum()),
        neither=int((~a & ~b).sum()),
    )


def _bits(packed: str, images: int) -> np.ndarray:
    found = np.frombuffer(bytes.fromhex(packed), dtype=np.uint8)
    if len(found) != -(-images // 8):
        raise ValueError(f"{8 * len(found)} bits for {images} images: these records do not belong together")
    return np.unpackbits(found, count=images).astype(bool)
