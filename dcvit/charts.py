"""Numbers for the report's charts: learning curves, schedules of alpha, dots with whiskers. No torch.

What is here draws nothing: it says where the points lie, as data for JSON or for a template.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dcvit.curves import mean_evolution, mean_of
from dcvit.ledger import Record
from dcvit.quantities import kind_of
from dcvit.recipe import DynamicAlpha, FixedAlpha, Recipe, StagedAlpha, StaticAlpha
from dcvit.schedules import staged_alpha, static_alpha
from dcvit.statistics import Exceeds, StaysWithin
from dcvit.verdicts import PartVerdict, interval

MOST_POINTS = 100  # of a curve
DIGITS = 4  # of a share, which is more than a screen shows
WIDTH = 210  # of a dot with whiskers, in pixels
MARGIN = 12  # left and right of it
ROUNDING = 1e-9  # of a tick: 0.3 / 0.1 is less than 3

# --- learning curves -----------------------------------------------------------------------


def thinned(length: int, most: int = MOST_POINTS) -> list[int]:
    """Which of `length` points to draw: at most `most`, evenly spread, first and last among them.

    >>> thinned(5), thinned(300, most=4)
    ([0, 1, 2, 3, 4], [0, 100, 199, 299])
    """
    if length <= most:
        return list(range(length))
    return [round(i * (length - 1) / (most - 1)) for i in range(most)]


def curve(records: Sequence[Record]) -> dict[str, Any] | None:
    """How the shares of easy and hard samples went, mean over a recipe's seeds; None without an evolution.

    Shares and the assimilation rate (share per epoch, Eq. 3) are in percent; `periods` are the two borders as
    fractions of training, or None, and then `reason` says why. The rate's unsteady ends are left out.
    """
    measured = _with_evolution(records)
    if not measured:
        return None
    found = mean_evolution(measured)
    chosen = thinned(len(found.epochs))
    shown: dict[str, Any] = {
        "seeds": len(measured),
        "epochs": len(found.epochs),
        "epoch": [i + 1 for i in chosen],
        "easy": _percent(found.easy, chosen),
        "hard": _percent(found.hard, chosen),
        "periods": None,
        "reason": found.reason,
    }
    if found.fitted_easy is not None and found.fitted_hard is not None and found.rate is not None:
        steady = range(*found.steady.indices(len(found.epochs)))
        rates = zip(chosen, _percent(found.rate, chosen), strict=True)
        shown |= {
            "easy_fit": _percent(found.fitted_easy, chosen),
            "hard_fit": _percent(found.fitted_hard, chosen),
            "rate": [rate if i in steady else None for i, rate in rates],
        }
    if found.periods is not None:
        shown["periods"] = [found.periods.formation_end, found.periods.exploration_start]
    return shown


def _with_evolution(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.evolution]


def _percent(values: ArrayLike, chosen: Sequence[int]) -> list[float]:
    return _rounded(100 * np.asarray(values), chosen)


def _rounded(values: ArrayLike, chosen: Sequence[int]) -> list[float]:
    """Short numbers, so that the page stays small."""
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values)[list(chosen)]]


# --- alpha over training -------------------------------------------------------------------


def schedules(
    labels: Mapping[Recipe, str], records: Mapping[Recipe, Sequence[Record]]
) -> dict[str, list[dict[str, Any]]]:
    """Alpha of Beta(alpha, alpha) over training, in percent of it, for the rules among some recipes.

    `static` and `staged` are what the rules say, `dynamic` is what was measured, mean over seeds.
    """
    static: dict[Any, dict[str, Any]] = {}
    staged: dict[Any, dict[str, Any]] = {}
    dynamic = []
    for recipe, label in labels.items():
        match recipe.alpha:
            case StaticAlpha() as rule:
                static.setdefault((rule, recipe.periods), _static(recipe, rule))
            case StagedAlpha() as rule:
                staged.setdefault((rule, recipe.periods), _staged(recipe, rule))
            case FixedAlpha(alpha=alpha):
                staged.setdefault(alpha, {"label": f"{alpha:g} throughout", "x": [0, 100], "y": [alpha] * 2})
            case DynamicAlpha():
                if measured := _with_evolution(records[recipe]):
                    dynamic.append(_measured(label, measured))
    return {"static": list(static.values()), "dynamic": dynamic, "staged": list(staged.values())}


def _measured(label: str, records: Sequence[Record]) -> dict[str, Any]:
    alpha = mean_of(records, "alpha")
    chosen = thinned(len(alpha))
    return {
        "label": label,
        "x": [round(100 * (i + 1) / len(alpha), 2) for i in chosen],
        "y": _rounded(alpha, chosen),
    }


def _static(recipe: Recipe, rule: StaticAlpha) -> dict[str, Any]:
    progress = [i / MOST_POINTS for i in range(MOST_POINTS + 1)]
    begin, end = recipe.periods.formation_end, recipe.periods.exploration_start
    growth = f"growth from {100 * begin:.3g} to {100 * end:.3g} %" if end else "exploration throughout"
    return {
        "label": growth,
        "x": [round(100 * t, 2) for t in progress],
        "y": [round(static_alpha(t, recipe.periods, rule=rule), DIGITS) for t in progress],
    }


def _staged(recipe: Recipe, rule: StagedAlpha) -> dict[str, Any]:
    """A line of steps, each corner twice."""
    begin, end = recipe.periods.formation_end, recipe.periods.exploration_start
    middles = (begin / 2, (begin + end) / 2, (end + 1) / 2)
    alphas = [staged_alpha(t, recipe.periods, rule) for t in middles]
    return {
        "label": " / ".join(f"{alpha:g}" for alpha in alphas),
        "x": [round(100 * t, 2) for t in (0, begin, begin, end, end, 1)],
        "y": [alpha for alpha in alphas for _ in range(2)],
    }


# --- dots with whiskers --------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers and where they lie on the screen."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Pixels from the left.

        >>> Axis(0, 1).at(0), Axis(0, 1).at(1)
        (12.0, 198.0)
        """
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (value - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        """Round numbers on the axis, three to seven of them.

        >>> Axis(-0.3, 1.1).ticks(), Axis(-21, 2).ticks()
        ([0.0, 0.5, 1.0], [-20.0, -15.0, -10.0, -5.0, 0.0])
        """
        step = 10.0 ** floor(log10((self.high - self.low) / 3))
        step *= max(factor for factor in (1, 2, 5) if factor * step <= (self.high - self.low) / 2.5)
        first, last = ceil(self.low / step - ROUNDING), floor(self.high / step + ROUNDING)
        return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


def axes(parts: Iterable[PartVerdict]) -> dict[str, Axis]:
    """One axis for each unit among a claim's parts, so that parts of one unit can be compared by eye."""
    marks: dict[str, list[float]] = {}
    for part in parts:
        marks.setdefault(unit(part), [0.0]).extend(_marks(part))
    return {name: _axis(values) for name, values in marks.items()}


def unit(part: PartVerdict) -> str:
    """What a part's numbers are in."""
    return kind_of(part.part.terms[0][1].metric).unit


def _axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    return Axis(low, high)


def _marks(part: PartVerdict) -> list[float]:
    """All numbers that have to be on the axis."""
    measured = [] if part.estimate is None else [part.estimate.value, *interval(part)]
    match part.part.question:
        case StaysWithin(delta=delta):
            return [*measured, -delta, delta]
        case Exceeds(bound=bound, size=size):
            return [*measured, bound, *([] if size is None else [size])]


def whisker(part: PartVerdict, axis: Axis) -> dict[str, Any]:
    """Where a template draws what of a part: the line to pass or the band to stay in, the paper's size and half of it,
    the whisker and the dot."""
    shown: dict[str, Any] = {"zero": axis.at(0)}
    match part.part.question:
        case StaysWithin(delta=delta):
            shown["band"] = (axis.at(-delta), axis.at(delta))
        case Exceeds(bound=bound, size=size):
            shown["bound"] = axis.at(bound)
            if size is not None:
                shown |= {"size": axis.at(size), "half": axis.at(bound + (size - bound) / 2)}
    if part.estimate is not None:
        low, high = interval(part)
        shown |= {"dot": axis.at(part.estimate.value), "low": axis.at(low), "high": axis.at(high)}
    return shown
