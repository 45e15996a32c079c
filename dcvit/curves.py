"""What a run's evolution says, ready to be drawn and judged. No torch, no matplotlib.

Shapes: E epochs, N parts of a histogram, L looks of the difficulty probe. Shares are of the samples of an
epoch, in [0, 1].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcvit.assimilation import default_degree, find_periods, fit_proportions
from dcvit.ledger import Record
from dcvit.recipe import Periods

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evolution:
    """Easy and hard samples over the epochs of a run, and what follows from them."""

    epochs: Floats  # (E,), 1 to E
    easy: Floats  # (E,), as counted
    hard: Floats
    fitted_easy: Floats | None  # least-squares curves; None where there are too few epochs for them
    fitted_hard: Floats | None
    rate: Floats | None  # knowledge assimilation rate, share per epoch (Eq. 3); unsteady outside of `steady`
    periods: Periods | None
    reason: str  # why there are no periods; "" where there are

    @property
    def steady(self) -> slice:
        """Where periods are sought: all epochs but E / 50, at least 1, at each end, where fits are unsteady."""
        cut = max(1, len(self.epochs) // 50)
        return slice(cut, len(self.epochs) - cut)


@dataclass(frozen=True, kw_only=True)
class PeriodValues:
    """The periods of a run in four numbers."""

    formation_end: float  # share of training, in [0, 1]
    exploration_start: float
    peak_rate: float  # share of the samples per epoch; the highest in growth, which is where it peaks
    growth_rate: float  # mean over the epochs of growth


@dataclass(frozen=True, eq=False)
class Looks:
    """What the difficulty probe saw: shares of easy and hard images by the way they were shown (Fig. 9)."""

    epochs: Floats  # (L,), after which it looked, counted from 1
    easy: Mapping[str, Floats]  # "clean", "random_erasing", "patch_erasing" -> (L,)
    hard: Mapping[str, Floats]


# --- one run -------------------------------------------------------------------------------


def proportions(
    record: Record, *, easy_above: float | None = None, hard_below: float | None = None
) -> tuple[Floats, Floats]:
    """The shares of easy and of hard samples in each epoch (Eq. 1 and 2), (E,) each.

    None for a threshold takes the shares as they were counted in training, by the recipe's own. Others are read off
    the histogram of top scores, whose parts are (i / 100, (i + 1) / 100]: a score that equals `hard_below` counts as
    hard there, in training it does not. No other score is counted differently, and of 32-bit floats hardly any
    equals a bound. ValueError for a threshold that is no border of two parts, and for easy_above < hard_below.
    """
    easy_bound = record.recipe["easy_above"] if easy_above is None else easy_above
    hard_bound = record.recipe["hard_below"] if hard_below is None else hard_below
    if easy_bound < hard_bound:
        raise ValueError(
            f"easy above {easy_bound}, hard below {hard_bound}: a sample would be both. Give thresholds with "
            "0 <= hard_below <= easy_above <= 1"
        )
    return _share(record, "easy", easy_above), _share(record, "hard", hard_below)


def _share(record: Record, name: str, threshold: float | None) -> Floats:
    if threshold is None or not record.evolution:
        return np.array([entry[name] for entry in record.evolution], dtype=float)
    histogram_EN = np.array([entry["histogram"] for entry in record.evolution], dtype=float)
    border = _border(threshold, parts=histogram_EN.shape[1])
    total_E = histogram_EN.sum(axis=1)
    if not total_E.all():
        raise ValueError(
            f"run {record.run_id}: the histogram of epoch {total_E.argmin() + 1} counts no sample"
        )
    chosen_EN = histogram_EN[:, border:] if name == "easy" else histogram_EN[:, :border]
    share_E: Floats = chosen_EN.sum(axis=1) / total_E
    return share_E


def _border(threshold: float, *, parts: int) -> int:
    """How many parts of the histogram lie below a threshold."""
    if not 0 <= threshold <= 1 or abs(threshold * parts - round(threshold * parts)) > 1e-9:
        raise ValueError(
            f"threshold {threshold}: scores were counted in {parts} parts of [0, 1], so only multiples of "
            f"{1 / parts:g} can be read off. Give one of these, or train with the recipe's thresholds set to yours"
        )
    return round(threshold * parts)


def evolution(
    record: Record, *, easy_above: float | None = None, hard_below: float | None = None
) -> Evolution:
    """Shares, their fits, rate and periods of one run; thresholds as in `proportions`, which says what it raises."""
    return evolution_of(*proportions(record, easy_above=easy_above, hard_below=hard_below))


def evolution_of(easy: Floats, hard: Floats) -> Evolution:
    """The same from the two shares per epoch, (E,) each. ValueError unless they are shares, and as many of each.

    >>> short = evolution_of(np.array([0.0, 0.1]), np.array([1.0, 0.8]))
    >>> short.rate, short.periods, short.reason
    (None, None, '2 epochs: the fit of degree 8, and all that follows from it, needs at least 10. Train for longer')
    """
    count = len(easy)
    epochs = np.arange(1.0, count + 1)
    degree = default_degree(count)
    if count < degree + 2:
        needed = f"the fit of degree {degree}, and all that follows from it, needs at least {degree + 2}"
        reason = f"{count} epochs: {needed}. Train for longer"
        return Evolution(epochs, easy, hard, None, None, None, None, reason)
    fit = fit_proportions(easy, hard)  # an error here is one of the data, and no reason
    periods, reason = None, ""
    try:
        periods = find_periods(easy, hard)
    except ValueError as error:
        reason = str(error)
    return Evolution(epochs, easy, hard, fit.easy, fit.hard, fit.rate, periods, reason)


def period_values(found: Evolution) -> PeriodValues | None:
    """Borders and rates of an evolution as numbers; None where it has no periods.

    >>> t = np.arange(1, 101)
    >>> easy = 1 / (1 + np.exp(-(t - 30) / 5))  # its rate is 1 / 20 at most, and a quarter of it at the borders
    >>> values = period_values(evolution_of(easy, 1 - easy))
    >>> round(values.formation_end, 2), round(values.exploration_start, 2), round(values.peak_rate, 2)
    (0.17, 0.43, 0.05)
    """
    if found.periods is None or found.rate is None:
        return None
    begin, end = found.periods.formation_end, found.periods.exploration_start
    progress_E = found.epochs / len(found.epochs)
    growth = found.rate[(begin <= progress_E) & (progress_E <= end)]
    return PeriodValues(
        formation_end=begin,
        exploration_start=end,
        peak_rate=float(growth.max()),
        growth_rate=float(growth.mean()),
    )


# --- the seeds of one recipe ---------------------------------------------------------------


def mean_evolution(
    records: Sequence[Record], *, easy_above: float | None = None, hard_below: float | None = None
) -> Evolution:
    """The evolution of the mean shares of runs that differ by their seeds; thresholds as in `proportions`.

    The fits, the rate and the periods are those of the mean. ValueError for runs of different recipes, images
    or numbers of epochs, for runs without an epoch, and for none.
    """
    _require_alike(records)
    shares = [proportions(record, easy_above=easy_above, hard_below=hard_below) for record in records]
    easy, hard = (np.mean([share[which] for share in shares], axis=0) for which in (0, 1))
    return evolution_of(easy, hard)


def mean_of(records: Sequence[Record], name: str) -> Floats:
    """Another number of each epoch ("top1", "loss", "alpha"), mean over such runs, (E,).

    ValueError as in `mean_evolution`, and if an epoch lacks it.
    """
    _require_alike(records)
    for record in records:
        lacking = [entry["epoch"] for entry in record.evolution if entry.get(name) is None]
        if lacking:
            raise ValueError(f"run {record.run_id} has no {name} of epoch {lacking[0]}")
    mean_E: Floats = np.mean([[entry[name] for entry in record.evolution] for record in records], axis=0)
    return mean_E


def looks(records: Sequence[Record]) -> Looks:
    """What the difficulty probe saw, mean over such runs. ValueError as in `mean_evolution`, and without a look."""
    _require_alike(records)
    for record in records:
        if not any("probe" in entry for entry in record.evolution):
            raise ValueError(
                f"run {record.run_id} has no looks of the difficulty probe: train with a recipe that has a "
                "difficulty_probe, as DeiT-B's and Swin-B's in dcvit.baselines"
            )
    probed = [[entry for entry in record.evolution if "probe" in entry] for record in records]
    ways = tuple(probed[0][0]["probe"])

    def mean(kind: str) -> dict[str, Floats]:
        return {
            way: np.mean([[entry["probe"][way][kind] for entry in entries] for entries in probed], axis=0)
            for way in ways
        }

    epochs_L = np.array([entry["epoch"] for entry in probed[0]], dtype=float)
    return Looks(epochs_L, easy=mean("easy"), hard=mean("hard"))


def _require_alike(records: Sequence[Record]) -> None:
    """ValueError unless there are runs, and nothing but their seeds tells them apart."""
    if not records:
        raise ValueError("the mean of no runs: give at least one record")
    first = records[0]
    if not first.evolution:
        raise ValueError(f"run {first.run_id} has no epochs: there is nothing to draw")
    for record in records[1:]:
        fields = [
            name
            for name in {**first.recipe, **record.recipe}
            if first.recipe.get(name) != record.recipe.get(name)
        ]
        lengths = (len(first.evolution), len(record.evolution))
        if fields:
            wrong = f"of different recipes ({', '.join(fields)})"
        elif first.data["fingerprint"] != record.data["fingerprint"]:
            wrong = "of different images"
        elif lengths[0] != lengths[1]:
            wrong = f"of different lengths ({lengths[0]} and {lengths[1]} epochs)"
        else:
            continue
        raise ValueError(
            f"runs {first.run_id} and {record.run_id} are {wrong}: a mean is over the seeds of one recipe"
        )
