"""A table's command: trains what has no record yet, then writes the pages. Help and plans start without torch."""

import argparse
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import sys
from time import time

from dcvit import published, sources
from dcvit.claims import state_of
from dcvit.ending import complain, exit_code, guarded
from dcvit.errors import NOT_REPRODUCED, OK, DataError, unwritable
from dcvit.estimating import calibration_of, guess, machine
from dcvit.facts import as_json
from dcvit.files import write_text
from dcvit.gather import patch_probes
from dcvit.host import cores
from dcvit.launch import LATER
from dcvit.ledger import Record, move_aside
from dcvit.making import make, probe_patches, say
from dcvit.options import cluster_problem, feed_of, table_parser
from dcvit.pages import render, summary
from dcvit.pausing import forget
from dcvit.planning import Plan, plan_as_json, print_plan, run_names
from dcvit.runs import Outcome, Place, Run, all_runs, finished, image_count
from dcvit.scores import Score
from dcvit.setting import DEFAULT_SEEDS, Setting, of_source
from dcvit.sources import Source, SplitName
from dcvit.starting import how_of, shell_lines
from dcvit.status import standings
from dcvit.tables import Cell, Results, Table
from dcvit.verdicts import judge


def reproduce(*tables: Table, argv: Sequence[str] | None = None) -> int:
    """Makes tables: trains what has no record, writes OUT/NAME.md and .json for each. Returns the exit code."""
    parser = table_parser(tables)
    arguments = parser.parse_args(argv)
    if arguments.json and not arguments.plan:
        parser.error("--json goes with --plan; without it the facts are in OUT/NAME.json")
    if arguments.baseline == "published" and arguments.scale != "paper":
        parser.error("--baseline published goes with --scale paper: the weights are of ImageNet-1k's classes")
    if problem := cluster_problem(arguments):
        parser.error(problem)
    return guarded(lambda: _reproduce(tables, arguments), out=_out(arguments))


def _reproduce(tables: Sequence[Table], arguments: argparse.Namespace) -> int:
    wanted = wanted_cells(tables, arguments.only)
    seeds = tuple(range(arguments.seeds or DEFAULT_SEEDS[arguments.scale]))
    out, source = _out(arguments), _find(arguments)
    if source is not None:
        _require_enough(source, arguments)
    setting = of_source(
        arguments.scale, source, train_images=arguments.train_images, test_images=arguments.test_images
    )
    twins = setting.twins(cell.recipe for table in tables for cell in table.cells)
    replaced = published.replaced_cells(tables) if arguments.baseline == "published" else []
    runs = all_runs((twins[cell.recipe] for cell in wanted if cell not in replaced), seeds)
    place = Place(
        source or Source("", "", ()),
        out,
        arguments.device,
        _workers(arguments),
        deadline=time() + 60 * arguments.minutes if arguments.minutes else None,
        gpus_per_run=arguments.gpus_per_run or 1,
        micro_batch=arguments.micro_batch,
        save_every=60 * arguments.checkpoint_minutes,
        allow_changes=arguments.allow_version_change,
        feed=feed_of(arguments),
        compiling=arguments.compile,
        runs_per_gpu=arguments.runs_per_gpu,
    )
    records, unusable = finished(all_runs(twins.values(), seeds), place) if source else ({}, {})
    names = run_names(tables, twins, runs)
    scores = published.read_scores(replaced, source, out, test_images=arguments.test_images)

    if arguments.print_commands:
        if lines := shell_lines([run for run in runs if run not in records], how_of(arguments, out)):
            say("\n".join(lines))
        return OK

    if arguments.plan:
        results = {
            table.name: _results(table, setting, seeds, place, records, {}, scores) for table in tables
        }
        gpu = arguments.scale != "smoke"
        planned = machine(
            gpu=gpu,
            augmentation=place.feed.augmentation,
            runs_per_gpu=place.runs_per_gpu,
        )
        known = calibration_of(records, planned)
        guesses = {run: guess(run, known, planned, images=image_count(run.recipe, source)) for run in runs}
        stands = standings(out, [place.folder_of(run) for run in runs])
        plan = Plan(
            tables=tables,
            results=results,
            runs=runs,
            names=names,
            guesses=guesses,
            machine=planned,
            measured_by=known.runs,
            standings={run: stands[place.folder_of(run)] for run in runs},
            unusable=unusable,
        )
        if arguments.json:
            say(plan_as_json(plan))
        else:
            print_plan(plan, setting)
            for name in published.to_evaluate(scores, wanted):
                say(f"  published weights to evaluate: {name}")
        return OK

    assert source is not None
    _require_writable(out)
    # first, as it is quick, and may fail for lack of a network
    if lacking := published.to_evaluate(scores, wanted):
        published.evaluate(lacking, place, test_images=arguments.test_images)
        scores = published.read_scores(replaced, source, out, test_images=arguments.test_images)
    for run in records:  # a kill between the writing of a record and their removal leaves states
        forget(place.folder_of(run))
    missing = [run for run in runs if run not in records]
    # another command may be making them again
    still = finished(all_runs(twins.values(), seeds), place)[1] if unusable else {}
    for run in missing:
        if run in unusable and run in still and state_of(place.folder_of(run)) != "held":
            aside = move_aside(place.folder_of(run))
            print(f"{unusable[run]}. Its folder is now {aside}; the run is made again.", file=sys.stderr)
    if not missing:
        outcomes = {}
    elif arguments.executor == "local":
        divide = arguments.workers is None
        outcomes = make(missing, place, arguments.jobs, names, records, divide=divide)
    else:
        outcomes = _make_elsewhere(missing, place, names, arguments)
    records |= {run: outcome.record for run, outcome in outcomes.items() if outcome.record}
    problems = {run: outcome.problem for run, outcome in outcomes.items() if outcome.kind not in ("", *LATER)}
    asked = any(outcome.kind == "stopped" for outcome in outcomes.values())
    unprobed, late = ({}, 0) if asked else probe_patches(wanted, twins, seeds, records, place, names)
    problems |= unprobed

    disappointing = []
    for table in tables:
        ended = _results(table, setting, seeds, place, records, problems, scores)
        _write(table, ended, out)
        disappointing += [f"{table.name}: {what}" for what in judge(table, ended).disappointing]
    queued = arguments.executor == "slurm"
    code = exit_code(list(outcomes.values()), unprobed=len(unprobed), late=late, queued=queued)
    if code == OK and arguments.strict and disappointing:
        return complain("not reproduced: " + "; ".join(disappointing), NOT_REPRODUCED)
    return code


def _make_elsewhere(
    missing: list[Run], place: Place, names: Mapping[Run, str], arguments: argparse.Namespace
) -> dict[Run, Outcome]:
    from dcvit.engines import Engine
    from dcvit.engines import make as make_elsewhere

    engine = Engine(
        executor=arguments.executor,
        slurm=arguments.slurm or {},
        ray_address=arguments.ray_address,
        jobs=arguments.jobs,
        resubmit=arguments.resubmit,
    )
    return make_elsewhere(missing, place, how_of(arguments, place.out), names, engine, say=say)


def wanted_cells(tables: Sequence[Table], names: Sequence[str]) -> list[Cell]:
    """The cells of the rows and columns with these names; ValueError for a name that no table has."""
    places = {name for table in tables for cell in table.cells for name in (cell.row, cell.column)}
    if unknown := [name for name in names if name not in places]:
        if len(tables) == 1:
            tables[0].only(unknown)  # says what there is
        raise ValueError(
            f"--only {unknown[0]!r} is no row or column of any table; there are {', '.join(map(repr, sorted(places)))}"
        )
    chosen: list[Cell] = []
    for table in tables:
        here = [name for name in names if any(name in (cell.row, cell.column) for cell in table.cells)]
        if here or not names:
            chosen += table.only(here)
    return chosen


def _results(
    table: Table,
    setting: Setting,
    seeds: tuple[int, ...],
    place: Place,
    records: Mapping[Run, Record],
    problems: Mapping[Run, str],
    scores: Mapping[Cell, Score | None],
) -> Results:
    """What there is for one of the tables."""
    twins = setting.twins(cell.recipe for cell in table.cells)
    runs = all_runs((twins[cell.recipe] for cell in table.cells if cell not in scores), seeds)
    mine = {run: records[run] for run in runs if run in records}
    probed = mine if any("/" in cell.metric for cell in table.cells) else {}
    return Results(
        scale=setting.scale,
        images=setting.in_words(),
        seeds=seeds,
        twins=twins,
        records={run.id: record for run, record in mine.items()},
        problems={run.id: problems[run] for run in runs if run in problems},
        patch_probes=patch_probes((place.folder_of(run), record) for run, record in probed.items()),
        published={cell: scores[cell] for cell in table.cells if cell in scores},
    )


def _write(table: Table, results: Results, out: Path) -> None:
    page, facts = out / f"{table.name}.md", out / f"{table.name}.json"
    write_text(page, render(table, results))
    write_text(facts, json.dumps(as_json(table, results), indent=1) + "\n")
    say(summary(table, results))
    say(f"\nEvery cell, what was assumed and what the scale changes: {page} and {facts}\n")


# --- what the arguments mean ---------------------------------------------------------------


def _find(arguments: argparse.Namespace) -> Source | None:
    """The images; for a plan or commands without --data None where there are none, which is said."""
    only_asks = arguments.plan or arguments.print_commands
    try:
        try:
            return sources.find(arguments.data, arguments.scale, download=not only_asks)
        except OSError as error:
            raise DataError(
                f"{error.filename or arguments.data} can't be read: {error.strerror or error}"
            ) from error
    except DataError as error:
        if not only_asks or arguments.data is not None:
            raise
        print(f"note: {error}", file=sys.stderr)
        return None


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


def _out(arguments: argparse.Namespace) -> Path:
    return Path(arguments.out or f"runs/{arguments.scale}")


def _workers(arguments: argparse.Namespace) -> int:
    """Who loads besides the run itself: a CPU has enough to do without them, a GPU must not wait."""
    if arguments.workers is not None:
        return int(arguments.workers)
    on_cpu = arguments.plan or (arguments.device or "") == "cpu" or arguments.scale == "smoke"
    return 0 if on_cpu else cores()


def _require_writable(out: Path) -> None:
    try:
        write_text(out / ".writable", "")
        (out / ".writable").unlink()
    except OSError as error:
        raise unwritable(out, error) from error
