"""How long runs take: by runs that have finished, by what benchmarks have measured, else by arithmetic. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dcvit.cost import Calibration, calibrate, estimated_seconds, loading_seconds
from dcvit.feed import Augmenting
from dcvit.host import cores, processor
from dcvit.ledger import Record
from dcvit.recipe import Recipe
from dcvit.runs import Run, took
from dcvit.throughput import Measured, Rate, gpu_here, measured

By = Literal["finished runs", "measured", "arithmetic"]
PLANNED = "H100"  # what the larger scales are planned for where there is no GPU


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What runs are on, how they are fed there, and what was measured of it."""

    gpu: bool
    cores: int
    augmentation: Augmenting
    runs_per_gpu: int = 1  # as asked for
    known: Measured | None = None
    is_here: bool = True  # else another one is planned for

    def rate(self, recipe: Recipe, augmentation: Augmenting) -> tuple[Rate, int] | None:
        """How fast a recipe's network trains and how many runs share the GPU then: as many as were asked for, else 1.

        None if neither was measured.
        """
        if self.known is None:
            return None
        for sharing in dict.fromkeys((self.runs_per_gpu, 1)):
            rate = self.known.rate(recipe, augmentation, runs_per_gpu=sharing)
            if rate is not None:
                return rate, sharing
        return None

    def seconds(self, recipe: Recipe, images: int, augmentation: Augmenting | None = None) -> float:
        """Wall time of a run on so many images, by what was measured, else by arithmetic.

        On a GPU computing and loading go side by side, and the slower one counts. Runs that share one take longer.
        """
        fed = augmentation or self.augmentation
        found = self.rate(recipe, fed)
        if self.known is None or found is None:
            return estimated_seconds(recipe, images=images, gpu=self.gpu, cores=self.cores, augmentation=fed)
        rate, sharing = found
        computing = recipe.epochs * images * sharing / rate.images_per_second
        if not self.gpu:
            return computing
        a_core = self.known.loading.get(fed)
        loading = loading_seconds(
            recipe,
            images=images,
            cores=self.cores,
            augmentation=fed,
            a_core=a_core and a_core.images_per_second,
        )
        return max(computing, loading * sharing)

    def in_words(self) -> str:
        """What a plan calls it."""
        if not self.gpu:
            return f"{self.cores} cores"
        name = self.known.device_name if self.known is not None else PLANNED
        return f"one {name} fed by {self.cores} cores"


def machine(*, gpu: bool, augmentation: Augmenting, runs_per_gpu: int = 1) -> Machine:
    """This machine; for a GPU where there is none, one that was measured elsewhere, if an H100 was."""
    known = measured()
    name = gpu_here() if gpu else processor()
    if name is None:
        name = max((there for there in known if PLANNED in there), default=None)
        here = False
    else:
        here = True
    return Machine(
        gpu=gpu,
        cores=cores(),
        augmentation=augmentation,
        runs_per_gpu=runs_per_gpu if gpu else 1,
        known=known.get(name) if name else None,
        is_here=here,
    )


@dataclass(frozen=True, kw_only=True)
class Guess:
    """How long a run takes, and who says so."""

    seconds: float  # wall time of the run
    sharing: int  # runs that share the device meanwhile
    by: By
    date: str | None = None  # of the measurement


def calibration_of(records: Mapping[Run, Record], machine: Machine) -> Calibration:
    """What the records of finished runs say of others on such a machine."""
    return calibrate(took(records), machine.seconds, gpu=machine.gpu)


def guess(run: Run, finished: Calibration, machine: Machine, *, images: int) -> Guess:
    """The time of a whole run on so many training images; what finished runs say corrects what else is known."""
    seconds = finished.seconds(run.recipe, images, machine.augmentation)
    if finished.runs:  # which may have shared their GPU or not
        return Guess(seconds=seconds, sharing=1, by="finished runs")
    found = machine.rate(run.recipe, machine.augmentation)
    if found is None:
        return Guess(seconds=seconds, sharing=1, by="arithmetic")
    rate, sharing = found
    return Guess(seconds=seconds, sharing=sharing, by="measured", date=rate.date)


def source_of(guesses: Sequence[Guess], machine: Machine, *, finished: int) -> str:
    """Who says how long some runs take, in words."""
    if any(one.by == "finished runs" for one in guesses):
        return f"by {finished} finished run{'s' if finished != 1 else ''}"
    dates = [one.date for one in guesses if one.date is not None]
    if not dates or machine.known is None:
        return "an estimate by arithmetic"
    where = "this machine" if machine.is_here else machine.known.device_name
    when = f"on {where}, {', '.join(sorted(set(dates)))}"
    if len(dates) == len(guesses):
        return f"measured {when}"
    return f"{len(dates)} of {len(guesses)} runs measured {when}; the rest by arithmetic"
