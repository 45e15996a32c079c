"""The options of the tables' command lines. No torch."""

import argparse
from collections.abc import Sequence
import re

from dcvit.scale import SCALES
from dcvit.tables import Table


def table_parser(tables: Sequence[Table]) -> argparse.ArgumentParser:
    """The parser of a command that makes these tables."""
    one = len(tables) == 1
    files = f"OUT/{tables[0].name}.md and .json" if one else "a page OUT/NAME.md and .json for each"
    script = tables[0].script or tables[0].name if one else "all_tables"
    headings = tables[0].heading if one else "; ".join(table.heading for table in tables)
    parser = argparse.ArgumentParser(
        prog=f"python -m reproductions.{script}",
        description=f"{headings}. Trains what has no record yet and writes {files}: the paper's numbers beside ours, "
        "and what the runs say of the paper's claims.",
        epilog="exit codes: 0 ok, 1 a run failed, 2 usage, 3 data or environment, 4 diverged, 5 something is below or "
        "contradicted (with --strict), 75 out of time (with --minutes): call again to go on; 2 if "
        "the minutes are too few for any run",
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
        type=at_least_one,
        metavar="N",
        help="runs of each cell (1 at smoke, 5 at small, 3 at paper)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ROW|COLUMN",
        help="train only this row or column (may be given several times); the page shows all that has been trained",
    )
    parser.add_argument(
        "--minutes",
        type=_positive,
        metavar="N",
        help="start nothing that would not end in N minutes, save what runs then, and exit 75 if something is left",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit 5 if a number is below the paper's or a claim is contradicted",
    )
    add_data(parser)
    parser.add_argument(
        "--train-images", type=at_least_one, metavar="N", help="train on so many, classes in turn"
    )
    parser.add_argument(
        "--test-images", type=at_least_one, metavar="N", help="test on so many, classes in turn"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where records and pages go (runs/SCALE)")
    add_device(parser)
    parser.add_argument(
        "--jobs", type=at_least_one, metavar="N", help="runs side by side (one a core; 1 on a GPU)"
    )
    parser.add_argument(
        "--workers",
        type=not_negative,
        metavar="N",
        help="loading processes of a run (0; on a GPU all cores)",
    )
    parser.add_argument("--plan", action="store_true", help="train nothing; say what would be, and the cost")
    parser.add_argument("--json", action="store_true", help="with --plan: as JSON")
    return parser


IMAGES = (
    "a folder with train/ and val/, or one that holds imagenette2-160/; wds/FOLDER; at paper also hfds/NAME; at small "
    "and paper DCVIT_DATA is the default, at smoke the digits in scikit-learn"
)


def add_data(parser: argparse.ArgumentParser, *, text: str = IMAGES) -> None:
    """--data, as all commands that open images have it."""
    parser.add_argument("--data", metavar="FOLDER", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, as all commands that compute have it."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (a GPU if there is one)")


def at_least_one(text: str) -> int:
    """A whole number from 1 on."""
    return _whole_number(text, 1)


def not_negative(text: str) -> int:
    """A whole number from 0 on."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    if not (re.fullmatch(r"-?[0-9]+", text) and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least {least} is needed")
    return int(text)


def _positive(text: str) -> float:
    if not (re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) and float(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: a number of minutes above 0 is needed")
    return float(text)
