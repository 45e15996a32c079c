"""Which runs there are, what is known of each, and how it can end. No torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dcvit import ledger, pausing
from dcvit.cost import Took
from dcvit.feed import Compiling, Feed, sharing_problem
from dcvit.recipe import Recipe, run_id
from dcvit.sources import (
    DIGITS_TRAIN,
    IMAGENET_TRAIN,
    IMAGENETTE_TRAIN,
    Source,
    check_readable,
    subset,
)

if TYPE_CHECKING:
    from dcvit.loop import Progress

IMAGES = {"imagenet1k": IMAGENET_TRAIN, "imagenette": IMAGENETTE_TRAIN, "digits": DIGITS_TRAIN}  # of training


@dataclass(frozen=True)
class Run:
    """A recipe and a seed."""

    recipe: Recipe
    seed: int

    @property
    def id(self) -> str:
        return run_id(self.recipe, self.seed)

    @property
    def before(self) -> "Run | None":
        """The run whose weights this one starts from."""
        return None if self.recipe.pretrained is None else Run(self.recipe.pretrained, self.seed)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with a record, with a problem, or before its end or its beginning.

    That is so for lack of time (paused, postponed), because of a signal (paused, stopped), or since
    another process trains it (held).
    """

    record: ledger.Record | None = None
    problem: str = ""
    kind: Literal["", "failed", "diverged", "environment", "paused", "postponed", "stopped", "held"] = ""


@dataclass(frozen=True)
class Place:
    """Where runs find their images and leave their records, and on what they run."""

    source: Source
    out: Path
    device: str | None  # None: a GPU if there is one
    workers: int  # of each process of a run, that load: processes, or threads where the device augments
    deadline: float | None = None  # as time.time() has it
    gpus_per_run: int = 1  # processes of a run; on a CPU, too
    is_member: bool = False  # this process is one of them, and its environment says which
    gpus: tuple[int, ...] = ()  # of this run, where several run side by side; (): the first ones
    micro_batch: int | None = None  # images that go through the network at once; None: what fits
    save_every: float = 600.0  # seconds between two states
    allow_changes: bool = False  # a run may go on with other versions
    feed: Feed = field(default_factory=Feed)
    compiling: Compiling = "default"  # of the step, on a GPU
    runs_per_gpu: int = 1  # that share its memory

    def folder_of(self, run: Run) -> Path:
        """Where a run's record and weights belong."""
        return ledger.folder_of(self.out, run.recipe, run.seed, self.source.fingerprint)


@dataclass(frozen=True)
class Watcher:
    """Who is told what happens."""

    progress: Callable[[Run, "Progress"], None] = lambda run, progress: None
    ended: Callable[[Run, Outcome], None] = lambda run, outcome: None
    waits: Callable[[Run, Outcome], None] = lambda run, outcome: None  # for another process that trains it


# Told the runs that this call has finished, a function that gives the seconds of a whole one.
Estimate = Callable[[Mapping[Run, ledger.Record]], Callable[[Run], float]]


def all_runs(recipes: Iterable[Recipe], seeds: Sequence[int]) -> list[Run]:
    """Every run that the recipes need, once, those that others start from first."""
    runs: dict[Run, None] = {}
    for recipe in recipes:
        for seed in seeds:
            run: Run | None = Run(recipe, seed)
            chain = []
            while run is not None:
                chain.append(run)
                run = run.before
            runs.update(dict.fromkeys(reversed(chain)))
    return list(runs)


def finished(runs: Sequence[Run], place: Place) -> tuple[dict[Run, ledger.Record], dict[Run, str]]:
    """Records of the runs that have one, and why those that have an unusable one can't use it."""
    records, unusable = {}, {}
    for run in runs:
        try:
            record = ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint)
        except ledger.UnusableRecord as error:
            unusable[run] = str(error)
        else:
            if record is not None:
                records[run] = record
    for base in {run.before for run in runs if run not in records and run.before in records}:
        try:  # others will start from its weights
            ledger.checked_weights(place.out, base.recipe, base.seed, place.source.fingerprint)
        except ledger.UnusableRecord as error:
            del records[base]
            unusable[base] = str(error)
    return records, unusable


def took(records: Mapping[Run, ledger.Record]) -> list[Took]:
    """What finished runs took, by their records."""
    return [
        Took(
            done.recipe,
            record.data["train_images"],
            record.environment["device"] != "cpu",
            record.seconds,
            record.environment.get("augmentation", "pil"),  # which older records do not name
        )
        for done, record in records.items()
    ]


def image_count(recipe: Recipe, source: Source | None) -> int:
    """On how many images a recipe trains; of those that its scale is about where there are none yet."""
    return recipe.train_images or (source.count("train") if source else IMAGES[recipe.images])


def check_images(runs: Sequence[Run], source: Source) -> None:
    """Decodes the images of a folder once; all runs of a call use the same ones. DataError names what fails."""
    if source.root:
        recipe = runs[0].recipe
        used = (
            *subset(source.train, recipe.train_images),
            *subset(source.val, recipe.test_images),
        )
        check_readable(source, used)


def check_together(place: Place, device: str, *, processes: int) -> None:
    """ValueError says what of a place does not go together on a device of this type with so many processes a run."""
    problem = place.feed.problem(device) or sharing_problem(
        device, runs_per_gpu=place.runs_per_gpu, gpus_per_run=processes, compiling=place.compiling
    )
    if problem:
        raise ValueError(problem)


def left(folder: Path) -> Outcome | None:
    """How the last try of the run in a folder ended, if it ended badly and could say so."""
    try:
        facts = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
        return Outcome(problem=str(facts["problem"]), kind=facts["kind"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Outcome(problem=f"{folder / 'outcome.json'} can't be read ({error})", kind="failed")


def course_of(run: Run, place: Place) -> pausing.Course | None:
    """Where a paused run is; None for one that has no readable state."""
    path = pausing.find(place.folder_of(run))
    if path is None:
        return None
    try:
        return pausing.read_course(path)
    except pausing.UnusableState:  # the run itself will say so
        return None
