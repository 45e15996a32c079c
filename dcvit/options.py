"""The options of the tables' command lines. No torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import re

from dcvit import slurm_options
from dcvit.feed import AUGMENTING, COMPILING, DECODERS, Feed, sharing_problem
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
        "contradicted (with --strict), 75 stopped, or out of time (with --minutes): call again to go on; 2 if "
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
        "--baseline",
        choices=("own", "published"),
        default="own",
        help="with --scale paper, published: fill the baselines' cells with the published weights of DeiT and Swin, by "
        "evaluation alone, instead of runs of our own (default); claims are then not judged",
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
        type=positive,
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
        "--jobs",
        type=at_least_one,
        metavar="N",
        help="runs side by side (one a core; on GPUs all that they take)",
    )
    parser.add_argument(
        "--runs-per-gpu",
        type=at_least_one,
        default=1,
        metavar="K",
        help="runs that share a GPU, each with its share of memory and cores (1): small networks leave most of a GPU "
        "idle. Processes of their own; NVIDIA's MPS is used if you have started it",
    )
    add_feed(parser)
    parser.add_argument("--plan", action="store_true", help="train nothing; say what would be, and the cost")
    parser.add_argument("--json", action="store_true", help="with --plan: as JSON")
    add_how(parser)
    _add_cluster(parser)
    return parser


def add_feed(parser: argparse.ArgumentParser) -> None:
    """How images get into a run and its step is compiled, as all commands that train have it."""
    parser.add_argument(
        "--workers",
        type=not_negative,
        metavar="N",
        help="loaders of a run's images: processes with --augmentation pil, threads with device (0; on a GPU all "
        "cores, divided among the runs)",
    )
    parser.add_argument(
        "--augmentation",
        choices=AUGMENTING,
        default="device",
        help="who crops, flips and applies RandAugment: device (default), whole batches at once where the run is, or "
        "pil, timm's transforms image by image. Same recipe, other random numbers: records say which, and one table "
        "should have one",
    )
    parser.add_argument(
        "--cache",
        type=_folder,
        metavar="FOLDER",
        help="training images resized once into a file in this folder, for each set and size one, made where it is "
        "missing, and read from there; with --augmentation device",
    )
    parser.add_argument(
        "--decoder",
        choices=DECODERS,
        default="cpu",
        help="of JPEGs: threads on the CPU (default), or the GPU's; with --augmentation device",
    )
    parser.add_argument(
        "--compile",
        choices=COMPILING,
        default="default",
        help="the training step on a GPU: by torch.compile (default), also as CUDA graphs, for small networks and one "
        "GPU a run, or not at all. On a CPU it makes no difference",
    )


def feed_of(arguments: argparse.Namespace) -> Feed:
    """What the options of `add_feed` say of images. ValueError for what does not go together, whatever the device."""
    feed = Feed(augmentation=arguments.augmentation, cache=arguments.cache, decoder=arguments.decoder)
    device = (arguments.device or "").partition(":")[0]
    known = device if device in ("cpu", "cuda") else None
    problem = feed.problem(known) or sharing_problem(
        known,
        runs_per_gpu=getattr(arguments, "runs_per_gpu", 1),  # `dcvit train` has neither this nor --slurm
        gpus_per_run=slurm_options.gpus_per_run(
            arguments.gpus_per_run, getattr(arguments, "slurm", None) or {}
        ),
        compiling=arguments.compile,
    )
    if problem:
        raise ValueError(problem)
    return feed


def add_how(parser: argparse.ArgumentParser) -> None:
    """What may differ between two calls of a run, as all commands that train have it."""
    parser.add_argument(
        "--gpus-per-run",
        type=at_least_one,
        metavar="N",
        help="GPUs that train one run together, here and on a cluster: the same recipe, sooner (1; with --slurm all "
        "that its job has). On a CPU so many processes",
    )
    parser.add_argument(
        "--micro-batch",
        type=at_least_one,
        metavar="N",
        help="images that go through the network at once (what fits into the GPU); the batch stays the recipe's",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=positive,
        default=10.0,
        metavar="N",
        help="save a run's state so often, besides at the ends of epochs (10)",
    )
    parser.add_argument(
        "--allow-version-change",
        action="store_true",
        help="let a run that was stopped go on with other versions of torch, timm, dcvit, ...; its record says so",
    )


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on a cluster")
    group.add_argument(
        "--executor",
        choices=("local", "slurm", "ray"),
        default="local",
        help="who trains: this machine (default), Slurm's job arrays (--jobs: so many at a time; --minutes: so long is "
        "watched), or a Ray cluster. Runs in the queue are never submitted twice",
    )
    group.add_argument(
        "--slurm",
        type=slurm_options.parse,
        metavar="KEY=VALUE,...",
        help="what a job asks for, under sbatch's names: partition=...,time=...,gpus-per-node=8,nodes=1; also "
        + ", ".join(
            key for key in slurm_options.ALLOWED if key not in ("partition", "time", "gpus-per-node", "nodes")
        ),
    )
    group.add_argument(
        "--resubmit",
        action="store_true",
        help="with --executor slurm: submit again what was submitted and is lost or failed",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="with --executor ray: the cluster (RAY_ADDRESS, or one made here)",
    )
    group.add_argument(
        "--print-commands",
        action="store_true",
        help="train nothing; print a shell line for each run without a record, those that others start from first",
    )


def cluster_problem(arguments: argparse.Namespace) -> str:
    """What is wrong with the options of a cluster that were given together; empty if nothing is."""
    executor = arguments.executor
    for name, value, needs in (
        ("--slurm", arguments.slurm, "slurm"),
        ("--resubmit", arguments.resubmit, "slurm"),
        ("--ray-address", arguments.ray_address, "ray"),
    ):
        if value and executor != needs:
            return f"{name} goes with --executor {needs}"
    if arguments.print_commands and (arguments.plan or executor != "local"):
        return "--print-commands goes without --plan and --executor: it is for schedulers that dcvit does not know"
    if arguments.runs_per_gpu > 1 and (executor != "local" or arguments.print_commands):
        return (
            "--runs-per-gpu goes with --executor local and without --print-commands: elsewhere a run has GPUs of its "
            "own"
        )
    if executor == "ray" and arguments.minutes:
        return "--minutes goes with --executor local or slurm: Ray's tasks end with this command"
    return ""


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


def _folder(text: str) -> Path:
    """A folder that is there or can be made."""
    path = Path(text)
    if not text or path.is_file():
        what = " is a file" if text else ""
        raise argparse.ArgumentTypeError(f"{text!r}{what}: the name of a folder is needed")
    return path


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


def positive(text: str) -> float:
    """A number of minutes above 0."""
    if not (re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) and float(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: a number of minutes above 0 is needed")
    return float(text)
