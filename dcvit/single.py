"""The command `dcvit train`: one run of a table, started by whoever has a machine for it. No torch until then.

It may be started twice by anyone: whoever comes second waits, and goes on if the first one dies. A
state that was saved is gone on from.
"""

import argparse
from pathlib import Path
import sys

from dcvit import sources
from dcvit.errors import (
    DATA_OR_ENVIRONMENT,
    DIVERGED,
    OK,
    RESUMABLE,
    RUN_FAILED,
)
from dcvit.executing import execute
from dcvit.launch import make_all
from dcvit.options import add_data, add_device, add_feed, add_how, at_least_one, feed_of, not_negative
from dcvit.runs import Outcome, Place, Run, all_runs, check_images, check_together, finished
from dcvit.scale import SCALES
from dcvit.setting import of_source
from dcvit.stopping import listening
from dcvit.tables import Table

CODES = {
    "": OK,
    "failed": RUN_FAILED,
    "environment": DATA_OR_ENVIRONMENT,
    "diverged": DIVERGED,
    "paused": RESUMABLE,
    "stopped": RESUMABLE,
    "postponed": RESUMABLE,
}


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `dcvit train`."""
    command.add_argument("run_id", metavar="RUN", help="the run's id, or its first digits; --plan lists them")
    command.add_argument("--seed", type=not_negative, default=0, metavar="N", help="of the run (0)")
    command.add_argument("--scale", choices=SCALES, default="smoke", help="of the table (smoke)")
    add_data(command)
    command.add_argument("--train-images", type=at_least_one, metavar="N", help="train on so many")
    command.add_argument("--test-images", type=at_least_one, metavar="N", help="test on so many")
    command.add_argument("--out", metavar="FOLDER", help="where its record goes (runs/SCALE)")
    add_device(command)
    add_feed(command)
    add_how(command)


def train(arguments: argparse.Namespace, tables: tuple[Table, ...]) -> int:
    """Trains the run that the arguments name; returns the exit code."""
    from dcvit.devices import resolve
    from dcvit.processes import given_rank

    rank = given_rank()
    leads = rank is None or rank[0] == 0
    feed = feed_of(arguments)
    device = resolve(arguments.device).type
    source = sources.find(arguments.data, arguments.scale)
    setting = of_source(
        arguments.scale, source, train_images=arguments.train_images, test_images=arguments.test_images
    )
    twins = setting.twins(cell.recipe for table in tables for cell in table.cells)
    run = named(arguments.run_id, arguments.seed, all_runs(twins.values(), (arguments.seed,)))
    place = Place(
        source,
        Path(arguments.out or f"runs/{arguments.scale}"),
        arguments.device,
        _workers(arguments, device),
        gpus_per_run=arguments.gpus_per_run or 1,
        is_member=rank is not None,
        micro_batch=arguments.micro_batch,
        save_every=60 * arguments.checkpoint_minutes,
        allow_changes=arguments.allow_version_change,
        feed=feed,
        compiling=arguments.compile,
    )
    check_together(place, device, processes=rank[1] if rank is not None else place.gpus_per_run)
    records, unusable = finished([run], place)
    if run in records:
        return _said(run, Outcome(record=records[run]), aloud=leads)
    if run in unusable:
        print(
            f"error: {unusable[run]}. Move its folder away, or call the table's command, which does",
            file=sys.stderr,
        )
        return DATA_OR_ENVIRONMENT
    from dcvit.display import Display

    if leads:
        check_images([run], source)
    with listening(patient=rank is not None) as stopped:
        if rank is None:
            with Display({run: run.id}) as display:
                outcome = make_all([run], place, jobs=1, watcher=display.watcher, stopped=stopped)[run]
        else:  # one of several: if another command is at it, nobody waits
            outcome = execute(run, place, lambda progress: None, stopped)
    return _said(run, outcome, aloud=leads)


def named(digits: str, seed: int, runs: list[Run]) -> Run:
    """The run whose id begins with these digits; ValueError if it is not exactly one."""
    found = [run for run in runs if run.id.startswith(digits)]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"{len(found)} runs of seed {seed} have an id that begins with {digits!r}: --plan of a table's command lists "
        "them. An id belongs to one scale, one set of images and one version of the recipes"
    )


def _workers(arguments: argparse.Namespace, device: str) -> int:
    from dcvit.host import cores

    if arguments.workers is not None:
        return int(arguments.workers)
    return max(cores() // (arguments.gpus_per_run or 1), 1) if device == "cuda" else 0


def _said(run: Run, outcome: Outcome, *, aloud: bool) -> int:
    """Says how a run ended, and returns the exit code; a run that another command trains is not waited for here."""
    if outcome.kind == "held":
        print(f"{outcome.problem}; nothing to do", flush=True)
        return RESUMABLE
    if outcome.record is not None:
        if aloud:
            print(f"run {run.id} has its record: top-1 {outcome.record.last['top1']:.2f} %", flush=True)
    elif aloud or outcome.kind in ("failed", "environment"):  # which may be this process's own
        print(f"error: {outcome.problem}", file=sys.stderr)
    return CODES[outcome.kind]
