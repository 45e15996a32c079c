"""Numbers that a finished run yields: accuracies, the patch probe's scores, and what its evolution says. No torch.

A number has a name (`top1`, `attended/10/p`, `late_hard`) and is of a kind, which says its unit,
how far two runs of it usually lie apart before any was measured, and what counts as equal. The
kinds of accuracies follow the statistics of the field; those of the learning process are chosen here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log

import numpy as np

from dcvit.curves import evolution
from dcvit.ledger import Record
from dcvit.recipe import Periods

WAYS = {"attended": "most attended", "random": "random", "least": "least attended"}  # of choosing patches
LATE = 250 / 300  # of training: the paper looks at epoch 250 of 300


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What numbers of one sort have in common."""

    unit: str
    digits: int  # shown
    prior: Mapping[str, float]  # scale -> standard deviation between runs, before any is measured
    delta: float | None = None  # what still counts as the printed number, or as equal
    one_device: bool = False  # numbers from different devices can't be compared


KINDS = {
    "top1": Kind(unit="%", digits=2, prior={"paper": 0.15, "small": 1.0}, delta=0.5),
    "top5": Kind(unit="%", digits=2, prior={"paper": 0.07, "small": 0.5}, delta=0.25),
    "p": Kind(unit="", digits=3, prior={"paper": 0.003, "small": 0.01}, delta=0.01),
    # chosen here: shares and borders scatter as accuracies do, borders are found to 3 % of training
    "share": Kind(unit="% of samples", digits=1, prior={"paper": 0.3, "small": 1.5}),
    "border": Kind(unit="% of training", digits=1, prior={"paper": 1.0, "small": 2.0}, delta=3.0),
    "log_rate": Kind(unit="ln(share per training)", digits=2, prior={"paper": 0.05, "small": 0.1}, delta=0.1),
    "log_time": Kind(unit="ln(s)", digits=3, prior={"paper": 0.02, "small": 0.05}, one_device=True),
}


def kind_of(metric: str) -> Kind:
    """The kind of a number by its name. KeyError if there is no such number.

    >>> kind_of("attended/10/top1_loss").delta
    0.5
    """
    if metric in PROCESS:
        return KINDS[PROCESS[metric][0]]
    *place, last = metric.split("/")
    if place and not (len(place) == 2 and place[0] in WAYS and place[1].isdecimal()):
        raise KeyError(metric)
    kinds = (
        {"p": "p", "top1": "top1", "p_loss": "p", "top1_loss": "top1"}
        if place
        else {"top1": "top1", "top5": "top5"}
    )
    return KINDS[kinds[last]]


def in_words(metric: str) -> str:
    """What a heading calls a number.

    >>> in_words("top1"), in_words("random/5/p"), in_words("late_hard")
    ('top-1', 'p_k, 5 random patches erased', 'hard samples at 5/6 of training')
    """
    if metric in PROCESS:
        return PROCESS[metric][1]
    *place, last = metric.split("/")
    what = {"top1": "top-1", "top5": "top-5", "p": "p_k", "top1_loss": "top-1 lost", "p_loss": "p_k lost"}[
        last
    ]
    if not place:
        return what
    way, k = place
    return f"{what}, {k} {WAYS[way]} patches erased"


def value(
    record: Record, patch_probe: Mapping[str, float] | None, metric: str, *, which: str = "last"
) -> float | None:
    """One number of a finished run; None where it has none (no growth period was found, nothing was probed).

    `which` is "last" or "best": accuracies of the last epoch, or of the best one on the test images.
    KeyError if there is no such number at all.
    """
    if metric in PROCESS:
        return PROCESS[metric][2](record)
    if "/" in metric:
        kind_of(metric)  # a name that nobody knows is a mistake, a k that was not probed is not
        return None if patch_probe is None else patch_probe.get(metric)
    accuracies: dict[str, float] = getattr(record, which)
    return accuracies[metric]


# --- the learning process ------------------------------------------------------------------


def periods(
    record: Record, *, easy_above: float | None = None, hard_below: float | None = None
) -> Periods | None:
    """The periods that a run went through, by its own thresholds or others; None if it shows no growth period."""
    return evolution(record, easy_above=easy_above, hard_below=hard_below).periods


def _border(which: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        found = periods(record)
        return None if found is None else 100 * getattr(found, which)

    return measure


def _border_shift(which: str, easy_above: float, hard_below: float) -> Callable[[Record], float | None]:
    """How far a border moves, in percent of training, when the thresholds become these."""

    def measure(record: Record) -> float | None:
        own, other = periods(record), periods(record, easy_above=easy_above, hard_below=hard_below)
        if own is None or other is None:
            return None
        return 100 * (getattr(other, which) - getattr(own, which))

    return measure


def _log_growth_rate(record: Record) -> float | None:
    """Log of the mean assimilation rate in growth, in shares per whole training."""
    curve = evolution(record)
    if curve.periods is None or curve.rate is None:
        return None
    epochs = len(curve.rate)
    begin, end = curve.periods.formation_end * epochs, curve.periods.exploration_start * epochs
    epoch = np.arange(1, epochs + 1)
    inside = (epoch >= begin) & (epoch <= end)
    return log(float(curve.rate[inside].mean()) * epochs) if inside.any() else None


def _late(record: Record) -> int:
    """Index of the epoch that stands for the paper's 250th."""
    return max(1, round(LATE * len(record.evolution))) - 1


def _late_share(name: str) -> Callable[[Record], float]:
    return lambda record: 100 * record.evolution[_late(record)][name]


def _late_above(threshold: float) -> Callable[[Record], float]:
    """Percent of the samples with a top score above the threshold, from the histogram."""

    def measure(record: Record) -> float:
        counts = record.evolution[_late(record)]["histogram"]
        return 100 * sum(counts[round(threshold * len(counts)) :]) / sum(counts)

    return measure


def _rise_after(name: str, factor: float) -> Callable[[Record], float]:
    """From the paper's 250th epoch to the last."""
    return lambda record: factor * (record.evolution[-1][name] - record.evolution[_late(record)][name])


def _probed_difference(kind: str, more: str, less: str) -> Callable[[Record], float | None]:
    """Mean over the looks of the difficulty probe, in points: a share under one erasing minus that under another."""

    def measure(record: Record) -> float | None:
        looks = [entry["probe"] for entry in record.evolution if "probe" in entry]
        return (
            100 * float(np.mean([look[more][kind] - look[less][kind] for look in looks])) if looks else None
        )

    return measure


def _log_epoch_seconds(record: Record) -> float:
    return log(float(np.median([entry["seconds"] for entry in record.evolution])))


# name: kind, in words, how it is measured
PROCESS: dict[str, tuple[str, str, Callable[[Record], float | None]]] = {
    "formation_end": ("border", "end of formation", _border("formation_end")),
    "exploration_start": ("border", "start of exploration", _border("exploration_start")),
    "formation_shift": (
        "border",
        "shift of formation's end at thresholds 0.9 and 0.1",
        _border_shift("formation_end", 0.9, 0.1),
    ),
    "exploration_shift": (
        "border",
        "shift of exploration's start at thresholds 0.9 and 0.1",
        _border_shift("exploration_start", 0.9, 0.1),
    ),
    "log_growth_rate": ("log_rate", "log of the mean assimilation rate in growth", _log_growth_rate),
    "late_hard": ("share", "hard samples at 5/6 of training", _late_share("hard")),
    "late_easy_at_0.9": ("share", "easy samples above 0.9 at 5/6 of training", _late_above(0.9)),
    "late_hard_at_0.1": (
        "share",
        "hard samples below 0.1 at 5/6 of training",
        lambda record: 100 - _late_above(0.1)(record),
    ),
    "end_easy_rise": ("share", "rise of easy samples in the last sixth", _rise_after("easy", 100)),
    "end_top1_rise": ("top1", "rise of top-1 in the last sixth", _rise_after("top1", 1)),
    "easy_drop": (
        "share",
        "easy samples, random erasing minus PatchErasing",
        _probed_difference("easy", "random_erasing", "patch_erasing"),
    ),
    "hard_rise": (
        "share",
        "hard samples, PatchErasing minus random erasing",
        _probed_difference("hard", "patch_erasing", "random_erasing"),
    ),
    "log_epoch_seconds": ("log_time", "log of the median epoch's seconds", _log_epoch_seconds),
}
