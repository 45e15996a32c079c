"""Makes what a table lacks: trains its runs and probes their patches, and says how it goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
import sys
from time import time

from dcvit import patch_probe
from dcvit.baselines import batch_warnings
from dcvit.estimating import calibration_of, guess, machine
from dcvit.host import cores
from dcvit.launch import make_all
from dcvit.ledger import Record, UnusableRecord
from dcvit.recipe import Recipe
from dcvit.runs import Outcome, Place, Run, check_images, check_together, image_count
from dcvit.schedules import updates_per_epoch
from dcvit.stopping import listening
from dcvit.tables import Cell
from dcvit.telling import say as say
from dcvit.wording import count


def make(
    runs: list[Run],
    place: Place,
    jobs: int | None,
    names: dict[Run, str],
    records: dict[Run, Record],
    *,
    divide: bool = False,
) -> dict[Run, Outcome]:
    """Checks the images, then trains; `records` of what is there already say how long things take.

    With `divide`, runs side by side on GPUs share the loading workers of `place`, else each process has as many.
    """
    from dcvit.devices import free_gpus, resolve
    from dcvit.display import Display

    device = resolve(place.device)
    check_together(place, device.type, processes=place.gpus_per_run)
    for run in runs:
        updates_per_epoch(image_count(run.recipe, place.source), run.recipe)
    for warning in batch_warnings(run.recipe for run in runs):
        print(f"warning: {warning}", file=sys.stderr)
    source = place.source
    check_images(runs, source)
    gpus = free_gpus() if device.type == "cuda" and device.index is None else ()
    many = place.gpus_per_run
    if 0 < len(gpus) < many:
        raise ValueError(f"--gpus-per-run {many}: {len(gpus)} GPUs are free here. Ask for at most so many")
    at_once = max((len(gpus) if device.type == "cuda" else cores()) // many, 1) * place.runs_per_gpu
    if device.type == "cuda" and many == 1 and jobs is not None and jobs > at_once:
        there = max(len(gpus), 1)
        raise ValueError(
            f"--jobs {jobs} is more than {count(there, 'free GPU')} of {count(place.runs_per_gpu, 'run')} at a time "
            f"take. Runs that share a GPU must know it: --runs-per-gpu {-(-jobs // there)}"
        )
    side_by_side = min(len(runs), jobs or at_once, *([at_once] if many > 1 and gpus else []))
    if divide and device.type == "cuda" and place.workers:
        place = replace(place, workers=max(place.workers // (side_by_side * many), 1))
    say(
        f"runs to do: {len(runs)}, on {device.type}, {side_by_side} at a time; records go to {place.out}. "
        "This can be stopped and called again"
    )

    here = machine(
        gpu=device.type == "cuda",
        augmentation=place.feed.augmentation,
        runs_per_gpu=place.runs_per_gpu,
    )

    def estimate(made: Mapping[Run, Record]) -> Callable[[Run], float]:
        known = calibration_of(records | dict(made), here)
        return lambda run: guess(run, known, here, images=image_count(run.recipe, source)).seconds

    with Display({run: names[run] for run in runs}) as display, listening() as stopped:
        return make_all(
            runs,
            place,
            jobs=side_by_side,
            watcher=display.watcher,
            estimate=estimate,
            stopped=stopped,
            gpus=gpus,
        )


def probe_patches(
    cells: Sequence[Cell],
    twins: dict[Recipe, Recipe],
    seeds: tuple[int, ...],
    records: dict[Run, Record],
    place: Place,
    names: dict[Run, str],
) -> tuple[dict[Run, str], int]:
    """Measures what Table 2 needs of finished runs, where that was not done yet.

    Returns what went wrong, and how many probes were not begun for lack of time.
    """
    recipes = dict.fromkeys(twins[cell.recipe] for cell in cells if "/" in cell.metric)
    runs = [run for recipe in recipes for seed in seeds if (run := Run(recipe, seed)) in records]
    to_do = [run for run in runs if not _is_probed(place.folder_of(run), records[run])]
    if not to_do:
        return {}, 0
    from dcvit.devices import resolve
    from dcvit.probing import probe_run

    problems: dict[Run, str] = {}
    for number, run in enumerate(to_do, start=1):
        if place.deadline is not None and time() > place.deadline:
            return problems, len(to_do) - number + 1
        try:
            probe = probe_run(
                run.recipe, run.seed, place.source, place.out, resolve(place.device), workers=place.workers
            )
        except ValueError as error:
            problems[run] = f"patch probe: {error}"
        else:
            say(f"[{number}/{len(to_do)}] patch probe of {names[run]}: {probe.seconds:.0f} s")
    return problems, 0


def _is_probed(folder: Path, record: Record) -> bool:
    """Whether a run has a patch probe that can be used; what is wrong with one that can't is said."""
    try:
        return patch_probe.read(folder, record) is not None
    except UnusableRecord as error:
        print(f"{error}. It is made again.", file=sys.stderr)
        return False
