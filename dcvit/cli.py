"""The command line of the tables, and `dcvit`. Help, plans and checks start without torch."""

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path
import re
import sys
from typing import Any

from dcvit import sources
from dcvit.cost import estimated_seconds
from dcvit.errors import (
    DATA_OR_ENVIRONMENT,
    DIVERGED,
    OK,
    RUN_FAILED,
    USAGE,
    DataError,
    EnvironmentProblem,
    unwritable,
)
from dcvit.files import write_text
from dcvit.launch import Outcome, Place, Run, all_runs, finished, make_all
from dcvit.ledger import UnusableRecord, folder_of, move_aside
from dcvit.recipe import Recipe
from dcvit.scale import SCALES, Scale, at_scale, on_images
from dcvit.schedules import updates_per_epoch
from dcvit.sources import Source, SplitName
from dcvit.tables import Results, Table, as_json, duration, render

DEFAULT_SEEDS: dict[Scale, int] = {"smoke": 1, "small": 5, "paper": 3}
IMAGES = {
    "imagenet1k": sources.IMAGENET_TRAIN,
    "imagenette": sources.IMAGENETTE_TRAIN,
    "digits": sources.DIGITS_TRAIN,
}  # of training
IN_WORDS = {
    "digits": "scikit-learn's handwritten digits",
    "imagenette": "Imagenette, 160 px",
    "imagenet1k": "ImageNet-1k",
}


def reproduce(table: Table, argv: Sequence[str] | None = None) -> int:
    """Makes one table: trains what has no record, writes OUT/tableN.md and .json. Returns the exit code."""
    parser = _table_parser(table)
    arguments = parser.parse_args(argv)
    if arguments.json and not arguments.plan:
        parser.error("--json goes with --plan; without it the facts are in OUT/tableN.json")
    try:
        return _reproduce(table, arguments)
    except (DataError, EnvironmentProblem, UnusableRecord) as error:
        return _complain(error, DATA_OR_ENVIRONMENT)
    except OSError as error:
        return _complain(unwritable(_out(arguments), error), DATA_OR_ENVIRONMENT)
    except ValueError as error:
        return _complain(error, USAGE)
    except KeyboardInterrupt:
        return _complain(
            "stopped; finished runs keep their records, the same command goes on from there", 130
        )


def _reproduce(table: Table, arguments: argparse.Namespace) -> int:
    scale: Scale = arguments.scale
    seeds = tuple(range(arguments.seeds or DEFAULT_SEEDS[scale]))
    out = _out(arguments)
    try:
        source: Source | None = _find(arguments)
    except DataError as error:
        if not arguments.plan or arguments.data is not None:
            raise
        source = None
        print(f"note: {error}", file=sys.stderr)

    if source is not None:
        _require_enough(source, arguments)
    twins = {cell.recipe: _twin(cell.recipe, arguments, source) for cell in table.cells}
    runs = all_runs(twins.values(), seeds)
    names = _names(table, twins, runs)
    place = Place(source or Source("", "", ()), out, arguments.device, _workers(arguments))
    records, unusable = finished(runs, place) if source else ({}, {})

    def results(outcomes: dict[Run, Outcome]) -> Results:
        made = {run: outcome.record for run, outcome in outcomes.items() if outcome.record}
        return Results(
            scale=scale,
            images=_in_words(source, arguments),
            seeds=seeds,
            twins=twins,
            records={run.id: record for run, record in (records | made).items()},
            problems={run.id: outcome.problem for run, outcome in outcomes.items() if outcome.problem},
        )

    if arguments.plan:
        _print_plan(table, results({}), runs, names, set(records), unusable, source, arguments)
        return OK

    assert source is not None
    _require_writable(out)
    missing = [run for run in runs if run not in records]
    for run, why in unusable.items():
        aside = move_aside(folder_of(out, run.recipe, run.seed, source.fingerprint))
        print(f"{why}. Its folder is now {aside}; the run is made again.", file=sys.stderr)
    outcomes = _make(missing, place, arguments.jobs, {run: names[run] for run in missing}) if missing else {}

    page, facts = out / f"table{table.number}.md", out / f"table{table.number}.json"
    ended = results(outcomes)
    write_text(page, render(table, ended))
    write_text(facts, json.dumps(as_json(table, ended), indent=1) + "\n")
    _say(render(table, ended).split("## Every cell")[0].rstrip())
    _say(f"\nEvery cell, what was assumed and what the scale changes: {page} and {facts}")
    return _exit_code(list(outcomes.values()))


def _make(runs: list[Run], place: Place, jobs: int | None, names: dict[Run, str]) -> dict[Run, Outcome]:
    """Checks the images, then trains."""
    from dcvit.devices import resolve
    from dcvit.display import Display

    device = resolve(place.device)
    for run in runs:
        updates_per_epoch(run.recipe.train_images or place.source.count("train"), run.recipe)
    source, recipe = place.source, runs[0].recipe  # in a folder, all runs of a call use the same files
    if source.root:
        used = (
            *sources.subset(source.train, recipe.train_images),
            *sources.subset(source.val, recipe.test_images),
        )
        sources.check_readable(source, used)
    side_by_side = min(len(runs), jobs or (1 if device.type == "cuda" else _cores()))
    _say(
        f"runs to do: {len(runs)}, on {device.type}, {side_by_side} at a time; records go to {place.out}. "
        "This can be stopped and called again"
    )
    with Display(names) as display:
        return make_all(runs, place, jobs=side_by_side, watcher=display.watcher)


def _exit_code(outcomes: list[Outcome]) -> int:
    failed = [outcome for outcome in outcomes if outcome.record is None]
    if not failed:
        return OK
    if hopeless := [outcome for outcome in failed if outcome.kind == "environment"]:
        return _complain(hopeless[0].problem, DATA_OR_ENVIRONMENT)
    own = [outcome for outcome in failed if not outcome.problem.startswith("not started")]
    code = DIVERGED if all(outcome.kind == "diverged" for outcome in own) else RUN_FAILED
    many = f"{len(failed)} run{'s' if len(failed) > 1 else ''}"
    if code == DIVERGED:
        return _complain(f"{many} without a record: what diverged would do so again; change the recipe", code)
    return _complain(f"{many} failed; the same command tries again", code)


# --- the plan ------------------------------------------------------------------------------


def _print_plan(
    table: Table,
    results: Results,
    runs: list[Run],
    names: dict[Run, str],
    done: set[Run],
    unusable: dict[Run, str],
    source: Source | None,
    arguments: argparse.Namespace,
) -> None:
    gpu = arguments.scale != "smoke"
    seconds = {run: _estimate(run.recipe, source, gpu=gpu) for run in runs}
    left = sum(seconds[run] for run in runs if run not in done)
    if arguments.json:
        facts = as_json(table, results)
        for cell in facts["cells"]:
            cell["values"], cell["best"] = [], []
        facts["plan"] = [
            {"run": run.id, "name": names[run], "done": run in done, "estimated_seconds": round(seconds[run])}
            for run in runs
        ]
        _say(json.dumps(facts, indent=1))
        return
    _say(f"Table {table.number}, scale {arguments.scale}, images: {results.images}")
    for run in runs:
        state = "done" if run in done else "unusable record" if run in unusable else "to do"
        _say(f"  {run.id}  {names[run]:<28} {state:<16} about {duration(seconds[run])}")
    machine = f"one H100 fed by {_cores()} cores" if gpu else f"{_cores()} cores"
    _say(
        f"{len(runs)} runs, {len(done)} done; left: about {duration(left if gpu else left / _cores())} on {machine} "
        "(an estimate by arithmetic)"
    )


def _estimate(recipe: Recipe, source: Source | None, *, gpu: bool) -> float:
    images = recipe.train_images or (source.count("train") if source else IMAGES[recipe.images])
    return estimated_seconds(recipe, images=images, gpu=gpu, cores=_cores())


# --- what the arguments mean ---------------------------------------------------------------


def _find(arguments: argparse.Namespace) -> Source:
    try:
        return sources.find(arguments.data, arguments.scale, download=not arguments.plan)
    except OSError as error:
        raise DataError(
            f"{error.filename or arguments.data} can't be read: {error.strerror or error}"
        ) from error


def _twin(recipe: Recipe, arguments: argparse.Namespace, source: Source | None) -> Recipe:
    """The recipe at the asked scale, on the images at hand."""
    twin = at_scale(recipe, arguments.scale)
    return on_images(
        twin,
        images=source.name if source else twin.images,
        classes=len(source.classes) if source else twin.classes,
        train_images=arguments.train_images,
        test_images=arguments.test_images,
    )


def _require_enough(source: Source, arguments: argparse.Namespace) -> None:
    asked: tuple[tuple[str, int | None, SplitName], ...] = (
        ("--train-images", arguments.train_images, "train"),
        ("--test-images", arguments.test_images, "val"),
    )
    for option, count, split in asked:
        if count is not None and count > (there := source.count(split)):
            raise DataError(
                f"{option} {count}: {count} images asked for, {there} there are in {split} of "
                f"{source.root or source.name}: ask for 1 to {there}"
            )


def _names(table: Table, twins: dict[Recipe, Recipe], runs: list[Run]) -> dict[Run, str]:
    """What to call a run: the first cell that shows it."""
    several = len({run.seed for run in runs}) > 1
    names: dict[Run, str] = {}
    for cell in table.cells:
        for run in runs:
            if run.recipe == twins[cell.recipe]:
                names.setdefault(
                    run, f"{cell.row}, {cell.column}" + (f", seed {run.seed}" if several else "")
                )
    return {run: names.get(run, f"before another, {run.id}") for run in runs}


def _in_words(source: Source | None, arguments: argparse.Namespace) -> str:
    name = (
        source.name
        if source
        else {"smoke": "digits", "small": "imagenette", "paper": "imagenet1k"}[arguments.scale]
    )
    words = IN_WORDS.get(name) or (f"folder {source.root.name}" if source and source.root else name)
    counts = [
        f"{count:,} {what}"
        for count, what in (
            (arguments.train_images or (source.count("train") if source else None), "training"),
            (arguments.test_images or (source.count("val") if source else None), "test"),
        )
        if count
    ]
    return f"{words} ({', '.join(counts)})" if counts else words


def _out(arguments: argparse.Namespace) -> Path:
    return Path(arguments.out or f"runs/{arguments.scale}")


def _workers(arguments: argparse.Namespace) -> int:
    """Loading processes: a CPU has enough to do without them, a GPU must not wait."""
    if arguments.workers is not None:
        return int(arguments.workers)
    on_cpu = arguments.plan or (arguments.device or "") == "cpu" or arguments.scale == "smoke"
    return 0 if on_cpu else _cores()


def _require_writable(out: Path) -> None:
    try:
        write_text(out / ".writable", "")
        (out / ".writable").unlink()
    except OSError as error:
        raise unwritable(out, error) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(problem: Any, code: int) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return code


# --- parsers -------------------------------------------------------------------------------


def _table_parser(table: Table) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m reproductions.{table.script}" if table.script else f"table{table.number}",
        description=f"Table {table.number} of the paper: {table.title}. Trains what has no record yet and writes "
        f"OUT/table{table.number}.md and .json, the paper's numbers beside ours.",
        epilog="exit codes: 0 ok, 1 a run failed, 2 usage, 3 data or environment, 4 diverged",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="smoke",
        help="smoke (default): digits on a CPU, minutes; small: Imagenette on a GPU; paper: ImageNet-1k",
    )
    parser.add_argument(
        "--seeds",
        type=_at_least_one,
        metavar="N",
        help="runs of each cell (1 at smoke, 5 at small, 3 at paper)",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="a folder with train/ and val/, or one that holds imagenette2-160/; wds/FOLDER; at paper also "
        "hfds/NAME; at small and paper DCVIT_DATA "
        "is the default, at smoke the digits in scikit-learn",
    )
    parser.add_argument(
        "--train-images", type=_at_least_one, metavar="N", help="train on so many, classes in turn"
    )
    parser.add_argument(
        "--test-images", type=_at_least_one, metavar="N", help="test on so many, classes in turn"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where records and pages go (runs/SCALE)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (a GPU if there is one)")
    parser.add_argument(
        "--jobs", type=_at_least_one, metavar="N", help="runs side by side (one a core; 1 on a GPU)"
    )
    parser.add_argument(
        "--workers",
        type=_not_negative,
        metavar="N",
        help="loading processes of a run (0; on a GPU all cores)",
    )
    parser.add_argument("--plan", action="store_true", help="train nothing; say what would be, and the cost")
    parser.add_argument("--json", action="store_true", help="with --plan: as JSON")
    return parser


def _at_least_one(text: str) -> int:
    return _whole_number(text, 1)


def _not_negative(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    if not (re.fullmatch(r"-?[0-9]+", text) and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least {least} is needed")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `dcvit`."""
    parser = argparse.ArgumentParser(prog="dcvit", description="Tools around the tables.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="what this machine has, and which command to run next")
    parser.parse_args(argv)
    from dcvit.doctor import examine

    return examine()
