"""The command `dcvit`: tools around the tables. Help starts without torch."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import gc
from pathlib import Path
import sys

from dcvit import single, status
from dcvit.commands import Command, add_to
from dcvit.ending import complain, guarded
from dcvit.errors import DATA_OR_ENVIRONMENT, OK, DataError
from dcvit.gather import belonging, find_run, of_images, read_all, results_of, setting_of
from dcvit.options import add_data, add_device, at_least_one, not_negative
from dcvit.tables import Results, Table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.run
    return guarded(lambda: command(arguments), out=Path(getattr(arguments, "out", None) or "."))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcvit",
        description="Tools around the tables.",
        epilog="exit codes: 0 ok, 2 usage, 3 data or environment",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    add("doctor", _doctor, "what this machine has, and which command to run next")

    evolution = add("evolution", _evolution, "the periods that a run went through, and a figure of them")
    evolution.add_argument(
        "run_name", metavar="RUN", help="a run's folder, or the first digits of its id in runs/*"
    )
    evolution.add_argument("--out", metavar="FOLDER", help="where the figure goes (the run's folder)")

    figures = add("figures", _figures, "the paper's figures from finished runs, as PNG and SVG")
    _add_places(figures)
    figures.add_argument(
        "--out", metavar="FOLDER", help="where they go (FOLDER/figures of each folder of runs)"
    )
    add_data(figures)
    figures.add_argument(
        "--maps", type=at_least_one, default=8, metavar="N", help="images of the activation maps (8)"
    )

    report = add(
        "report", _report, "one HTML page with everything: tables, claims, curves, and the runs behind them"
    )
    _add_places(report)
    report.add_argument("--out", metavar="FILE", default="report.html", help="where it goes (report.html)")

    publish = add(
        "publish", _publish, "copy records of scale small or paper from a clean tree to tables/, and render"
    )
    publish.add_argument(
        "places", nargs="*", metavar="RUNS", help="folders that a table's command wrote (none: only render)"
    )
    publish.add_argument("--into", metavar="FOLDER", default="tables", help="where they go (tables)")

    probe = add("probe", _probe, "the top-k patch probe of Table 2 on any timm ViT or Swin")
    probe.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="weights: .safetensors, .pth or .pt"
    )
    probe.add_argument("--model", required=True, metavar="NAME", help="timm's name of the model")
    probe.add_argument(
        "--k", type=_numbers, default=(0, 1, 5, 10), metavar="K,K,...", help="patches erased (0,1,5,10)"
    )
    probe.add_argument(
        "--images", type=at_least_one, metavar="N", help="of the training images, classes in turn (all)"
    )
    probe.add_argument("--batch", type=at_least_one, default=64, metavar="N", help="images at a time (64)")
    probe.add_argument("--workers", type=not_negative, default=0, metavar="N", help="loading processes (0)")
    add_data(probe, text="a folder with train/ and val/, each with one folder of images a class")
    add_device(probe)
    add_to(add)
    single.add_options(add("train", _train, "train one run of a table; what every scheduler starts"))
    status.add_options(
        add("status", status.show, "how each run of a folder stands: done, running, queued, lost, ...")
    )
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "places",
        nargs="*",
        metavar="RUNS",
        help="folders that a table's command wrote (all in runs/ that hold records)",
    )
    parser.add_argument(
        "--images",
        dest="fingerprint",
        metavar="FINGERPRINT",
        help="of several data sets in a folder, the one to show",
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: whole numbers with commas between them are needed"
        ) from error


def _tables() -> tuple[Table, ...]:
    from reproductions.all_tables import TABLES

    return TABLES


def _train(arguments: argparse.Namespace) -> int:
    return single.train(arguments, _tables())


def _doctor(arguments: argparse.Namespace) -> int:
    from dcvit.doctor import examine

    return examine()


# --- folders of runs -----------------------------------------------------------------------


def _places(arguments: argparse.Namespace) -> list[Path]:
    """The folders that were named; by default all of runs/ that hold records. DataError for one that holds none."""
    named = [Path(name) for name in arguments.places]
    for place in named:
        if not any((place / inside).is_dir() for inside in ("ledger", "records")):
            raise DataError(
                f"{place} holds no records: name a folder that a table's command wrote (it has ledger/ inside)"
            )
    return named or _default_places()


def _default_places() -> list[Path]:
    return sorted(path.parent for path in Path("runs").glob("*/ledger"))


def _studies(arguments: argparse.Namespace) -> list[tuple[Path, list[tuple[Table, Results]]]]:
    """Per folder what its records say of each table; what can't be used is said."""
    read = {place: read_all(place) for place in _places(arguments)}
    for _, unusable in read.values():
        for why in unusable.values():
            print(f"left out: {why}", file=sys.stderr)
    filed = [one for there, _ in read.values() for one in there]
    chosen = of_images(filed, arguments.fingerprint) if filed else []
    recipes = [cell.recipe for table in _tables() for cell in table.cells]
    studies = []
    for place in read:
        here = [one for one in chosen if one.folder.is_relative_to(place)]
        if not here:
            continue
        setting = setting_of(_tables(), here, place=place)
        known = belonging(recipes, setting, here)
        for folder in sorted({one.folder for one in here} - {one.folder for one in known}):
            print(f"left out: {folder} belongs to no cell of a table of this version", file=sys.stderr)
        studies.append((place, [(table, results_of(table, setting, known)) for table in _tables()]))
    return studies


# --- the commands --------------------------------------------------------------------------


def _evolution(arguments: argparse.Namespace) -> int:
    from dcvit.curves import evolution

    filed = find_run(arguments.run_name, places=_default_places())
    record = filed.record
    found = evolution(record)
    print(f"run {record.run_id}, seed {record.seed}, {len(record.evolution)} epochs, {filed.folder}")
    if found.periods is None:
        print(f"no periods: {found.reason}", file=sys.stderr)
    else:
        epochs = len(record.evolution)
        begin, end = found.periods.formation_end, found.periods.exploration_start
        print(f"formation    epochs 1 to {begin * epochs:.1f} ({100 * begin:.1f} % of training)")
        print(f"growth       to {end * epochs:.1f} ({100 * (end - begin):.1f} %)")
        print(f"exploration  to {epochs} ({100 * (1 - end):.1f} %)")
        print(f"as a value:  Periods(formation_end={begin:.4f}, exploration_start={end:.4f})")
    from dcvit.picturing import draw_evolution

    try:
        scale = setting_of(_tables(), [filed], place=filed.folder).scale
    except DataError:  # of no table
        scale = None
    for path in draw_evolution(filed, Path(arguments.out) if arguments.out else filed.folder, scale=scale):
        print(path)
    return OK if found.periods else DATA_OR_ENVIRONMENT


def _figures(arguments: argparse.Namespace) -> int:
    from dcvit.picturing import draw_all

    studies = _studies(arguments)
    if not studies:
        return complain("there are no records in runs/: make a table first", DATA_OR_ENVIRONMENT)
    for place, tables in studies:
        out = place / "figures"
        if arguments.out:  # folders of the same figures must not overwrite each other
            out = Path(arguments.out) / (place.name if len(studies) > 1 else "")
        drawn, left_out = draw_all(tables, place, out, data=arguments.data, maps=arguments.maps)
        for path in drawn:
            print(path)
        for what, why in left_out.items():
            print(f"left out: {what}: {why}", file=sys.stderr)
    return OK


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without Python's collector of cycles, which would walk through the millions of numbers in records each time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@_collector_off()
def _report(arguments: argparse.Namespace) -> int:
    from dcvit.report import Study, write

    studies = [
        Study(
            name=str(place),
            tables=tuple(tables),
            pictures=tuple(sorted((place / "figures").glob("activation*.png"))),
        )
        for place, tables in _studies(arguments)
    ]
    if not studies:
        from dcvit.setting import of_nothing

        nothing = of_nothing("paper")
        studies = [
            Study(
                name="no runs yet",
                tables=tuple((table, results_of(table, nothing, [])) for table in _tables()),
            )
        ]
    write(Path(arguments.out), studies)
    print(f"{arguments.out} ({Path(arguments.out).stat().st_size / 2**20:.1f} MiB)")
    return OK


def _publish(arguments: argparse.Namespace) -> int:
    from dcvit.publishing import publish

    copied, refused = publish(_tables(), [Path(place) for place in arguments.places], Path(arguments.into))
    for folder in copied:
        print(f"published {folder}")
    for folder, why in refused.items():
        print(f"refused {folder}: {why}", file=sys.stderr)
    print(
        f"{len(copied)} new records, {len(refused)} refused; pages in {arguments.into}/small and {arguments.into}/paper"
    )
    return DATA_OR_ENVIRONMENT if refused else OK


def _probe(arguments: argparse.Namespace) -> int:
    if not arguments.data:
        raise DataError(
            "--data FOLDER is needed: a folder with train/ and val/, each with one folder of images a class"
        )
    from dcvit.devices import resolve
    from dcvit.patch_probe import as_text
    from dcvit.probing import probe_checkpoint
    from dcvit.sources import find

    probe = probe_checkpoint(
        arguments.model,
        Path(arguments.checkpoint),
        find(arguments.data, "smoke"),
        ks=arguments.k,
        images=arguments.images,
        batch=arguments.batch,
        device=resolve(arguments.device),
        workers=arguments.workers,
    )
    print(as_text(probe))
    return OK
