"""One training run, from a recipe and a seed to a record.

One that is told to stop, or whose time is up, saves its state, and the next call goes on from there
to the bit; so does a call after a kill, from the last state that was saved on the way.
"""

from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import torch

from dcvit import ledger
from dcvit.augmentation import global_generators_kept
from dcvit.claims import Claim
from dcvit.datasets import pictures
from dcvit.devices import best_precision, flushed_denormals
from dcvit.evaluating import StillImages
from dcvit.feed import Compiling, Feed
from dcvit.keeping import Keeper, clean, gone_on
from dcvit.layout import Piece, pieces_of
from dcvit.loading import training_batches
from dcvit.looking import sample_of
from dcvit.loop import Loop, Observer, Orders, Stopped
from dcvit.memory import fitting, out_of_memory
from dcvit.origin import division_of, maker_of, manner_of, note_statistics, pretrained_weights
from dcvit.pausing import Course
from dcvit.processes import ALONE, World
from dcvit.recipe import Recipe
from dcvit.schedules import updates_per_epoch
from dcvit.sources import Source
from dcvit.state import Tally, begin_state

SAVE_EVERY = 600.0  # seconds between two states in the middle of an epoch


def fit(
    recipe: Recipe,
    seed: int,
    data: Source,
    out: Path,
    device: torch.device,
    *,
    workers: int = 0,
    observe: Observer | None = None,
    deadline: float | None = None,
    stopped: Stopped = str,
    world: World = ALONE,
    at_most: int | None = None,
    sharing: int = 1,
    save_every: float = SAVE_EVERY,
    allow_changes: bool = False,
    claim: Claim | None = None,
    feed: Feed = Feed(),
    compiling: Compiling = "default",
) -> ledger.Record:
    """Trains one run and writes its record and weights into its folder below `out`.

    Deterministic in (recipe, seed, data) on the CPU of one machine, whatever `workers` is and however
    often the run is stopped; torch's, numpy's and Python's global generators are left as they were.
    A state that an earlier call saved is gone on from; stderr names those that can't be used. Several
    processes, a `world`, train the same recipe, and so does one that takes a batch in pieces of `at_most` images;
    sums are then rounded differently. Without `at_most` a piece is what fits into the part of a GPU that one of
    `sharing` runs has. `deadline` is in seconds of `time.time`, `save_every` in seconds.

    Raises Paused, after the state was saved, when `stopped` gives a reason (looked at after every update and
    test batch) or at the first look after the deadline; Diverged when a loss or gradient is not finite, after
    the state before that step was saved; DataError when the images do not fit the recipe; EnvironmentProblem
    when the state is of other versions and that is not allowed; ValueError when the run that it starts from is
    not there; TakenOver when another process has the run.
    """
    with global_generators_kept(device), flushed_denormals(), out_of_memory(recipe, device):
        pieces = pieces_of(
            recipe,
            processes=world.size,
            at_most=at_most or fitting(recipe, device, world.size, sharing=sharing),
        )
        if world.leads:
            clean(ledger.folder_of(out, recipe, seed, data.fingerprint))
            note_statistics(recipe, pieces[0])
        loop = _begin(
            recipe,
            seed,
            data,
            out,
            device,
            Orders(observe or (lambda progress: None), deadline, stopped, world, claim),
            workers=workers,
            pieces=pieces[world.rank],
            save_every=save_every,
            allow_changes=allow_changes,
            feed=feed,
            compiling=compiling,
        )
        with world.talking(), closing(loop.batches):
            return loop.to_the_end()


def _begin(
    recipe: Recipe,
    seed: int,
    data: Source,
    out: Path,
    device: torch.device,
    orders: Orders,
    *,
    workers: int,
    pieces: list[Piece],
    save_every: float,
    allow_changes: bool,
    feed: Feed,
    compiling: Compiling,
) -> Loop:
    """The run, fresh or where its last state left it."""
    started, begun = datetime.now(timezone.utc), perf_counter()
    world = orders.world
    folder = ledger.folder_of(out, recipe, seed, data.fingerprint)
    train, test = pictures(data, "train", recipe), pictures(data, "val", recipe)
    updates = updates_per_epoch(len(train), recipe)
    precision = best_precision(device)
    manner = manner_of(feed, compiling, device)
    state = begin_state(
        recipe,
        seed,
        device,
        weights=pretrained_weights(recipe, seed, data, out),
        world=world,
        compiling=compiling,
    )
    state.tally = Tally.empty(device)
    probe = recipe.difficulty_probe
    fresh = Course(
        maker=maker_of(
            recipe, seed, data, out, device, precision, division=division_of(world, pieces), manner=manner
        ),
        update=0,
        updates=recipe.epochs * updates,
        evolution=[],
        best={"top1": -1.0},
        started=started.isoformat(timespec="seconds"),
        seconds=0.0,
        epoch_seconds=0.0,
    )
    course, best_weights = gone_on(folder, state, fresh, allow_changes=allow_changes)
    if world.any(
        world.told([course.update, len(course.evolution)]) != [course.update, len(course.evolution)]
    ):
        raise ValueError(
            f"process {world.rank} would go on from update {course.update}, another one from elsewhere: do all see "
            f"the same {folder}?"
        )
    keeper = Keeper(folder, state, world.leads, save_every, orders.claim, best_weights)
    return Loop(
        recipe=recipe,
        seed=seed,
        data=data,
        manner=manner,
        folder=folder,
        device=device,
        precision=precision,
        orders=orders,
        pieces=pieces,
        state=state,
        keeper=keeper,
        course=course,
        updates=updates,
        batches=training_batches(
            train,
            recipe,
            seed=seed,
            start=course.update,
            workers=workers,
            pinned=device.type == "cuda",
            positions=[position for piece in pieces for position in piece.positions],
            feed=feed,
            device=device,
        ),
        train_images=len(train),
        test_set=StillImages(test, recipe, workers=workers, device=device, world=world),
        sample=None
        if probe is None
        else StillImages(sample_of(train, probe.images), recipe, workers=workers, device=device),
        begun=begun - course.seconds,
        epoch_begun=begun - course.epoch_seconds,
        done=course.update,
    )
