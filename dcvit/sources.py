"""Where the images are, whether they are what a run needs, and what names them. No torch.

A source is a list of files; its fingerprint goes into every record, so that a record answers
only for the images it was made from.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import hashlib
from importlib.util import find_spec
from itertools import chain, zip_longest
import os
from pathlib import Path
from typing import Literal

from dcvit.errors import DataError
from dcvit.files import write_text
from dcvit.scale import Scale

SplitName = Literal["train", "val"]

IMAGENETTE = "imagenette2-160"
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
IMAGENETTE_CLASSES = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)
DIGITS_TRAIN, DIGITS_TEST = 1438, 359  # every fifth of the 1,797 digits is held out
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class File:
    """One image of a folder: its path below the source's root, its class, its size in bytes."""

    path: str
    label: int
    size: int


@dataclass(frozen=True, eq=False)
class Source:
    """The images of a run. `files` is empty for the digits, which come in a package."""

    name: str  # as in Recipe.images
    fingerprint: str
    classes: tuple[str, ...]
    root: Path | None = None
    train: tuple[File, ...] = ()
    val: tuple[File, ...] = ()

    def count(self, split: SplitName) -> int:
        """How many images a split has."""
        if self.name == "digits":
            return DIGITS_TRAIN if split == "train" else DIGITS_TEST
        return len(getattr(self, split))


def find(data: str | None, scale: Scale, *, download: bool = True) -> Source:
    """The images for a scale: what `--data` names, else the digits (smoke) or DCVIT_DATA (small, paper).

    Imagenette is fetched where it is missing, if `download` says so and the network allows.
    DataError says what is missing and where to put it.
    """
    if data is None and scale == "smoke":
        return digits()
    place = data if data is not None else os.environ.get("DCVIT_DATA")
    if scale == "small":
        return from_folder(imagenette_root(place, download=download))
    if not place:
        raise DataError(
            "no images: scale paper reads ImageNet-1k. Give --data FOLDER, or set DCVIT_DATA, to a "
            "folder with train/ and val/ of 1,000 class folders each"
            if data is None
            else "--data is empty: name a folder with train/ and val/ (is DCVIT_DATA set?)"
        )
    source = from_folder(_with_imagenette_inside(Path(place)))
    if scale == "paper" and len(source.classes) != 1000:
        raise DataError(
            f"{source.root} has {len(source.classes)} classes: scale paper trains on the 1,000 of "
            "ImageNet-1k. For a subset use --scale smoke"
        )
    return Source(**{**vars(source), "name": "imagenet1k"}) if scale == "paper" else source


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, named by the bytes of the file they lie in."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    packed = Path(
        next(iter(spec.submodule_search_locations)), "datasets", "data", "digits.csv.gz"
    ).read_bytes()
    return Source(
        name="digits",
        fingerprint=hashlib.sha256(packed).hexdigest(),
        classes=tuple("0123456789"),
    )


def from_folder(root: Path) -> Source:
    """The images of a folder with train/ and val/, each with one folder a class (an ImageFolder)."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: --data takes a folder with train/ and val/")
    for split in ("train", "val"):
        if not (root / split).is_dir():
            here = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
            raise DataError(
                f"{root} has no {split}/ (found: {here}): it must hold train/ and val/, "
                "each with one folder of images a class"
            )
    classes = _class_names(root / "train")
    if (tested := _class_names(root / "val")) != classes:
        odd = sorted(set(classes) ^ set(tested))
        raise DataError(
            f"{root}: train/ has {len(classes)} classes and val/ {len(tested)}; only one of them has "
            f"{', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}. Both must hold the same class folders"
        )
    train, val = (tuple(_files(root, split, classes)) for split in ("train", "val"))
    lines = "".join(f"{file.path} {file.size}\n" for file in (*train, *val))
    return Source(
        name="imagenette" if classes == IMAGENETTE_CLASSES else "folder",
        fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
        classes=classes,
        root=root,
        train=train,
        val=val,
    )


def imagenette_root(place: str | None, *, download: bool = True) -> Path:
    """The folder of Imagenette (160 px) under `place`, downloaded where it is missing and the network allows."""
    parent = Path(place) if place else cache_folder()
    if place and not parent.is_dir():
        raise DataError(
            f"{parent} is not a folder: --data takes one with train/ and val/, or with {IMAGENETTE}/"
        )
    root = _with_imagenette_inside(parent)
    if (root / "train").is_dir():
        return root
    try:
        if not download:
            raise OSError("not tried")
        from torchvision.datasets import Imagenette

        parent.mkdir(parents=True, exist_ok=True)
        Imagenette(parent, split="train", size="160px", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Imagenette is not in {parent} and could not be downloaded ({error}). Scale small needs it: fetch "
            f"{IMAGENETTE_URL}, unpack it so that {parent / IMAGENETTE / 'train'} and {parent / IMAGENETTE / 'val'} "
            "exist, and give --data " + str(parent)
        ) from error
    return parent / IMAGENETTE


def _with_imagenette_inside(folder: Path) -> Path:
    inside = folder / IMAGENETTE
    return inside if inside.is_dir() and not (folder / "train").is_dir() else folder


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if not names:
        raise DataError(f"{folder} is empty: it must hold one folder of images a class")
    return names


def _files(root: Path, split: SplitName, classes: Sequence[str]) -> Iterator[File]:
    for label, name in enumerate(classes):
        entries = sorted(os.scandir(root / split / name), key=lambda entry: entry.name)
        images = [entry for entry in entries if entry.name.lower().endswith(EXTENSIONS)]
        if not images:
            raise DataError(
                f"{root / split / name} holds no images ({', '.join(EXTENSIONS)}): a class can't be empty"
            )
        for entry in images:
            yield File(f"{split}/{name}/{entry.name}", label, entry.stat().st_size)


# --- subsets and checks --------------------------------------------------------------------


def subset(files: Sequence[File], count: int | None) -> tuple[File, ...]:
    """The first `count` files, taken from the classes in turn; all of them for None.

    Raises DataError if there are fewer.

    >>> files = [File("a", 0, 1), File("b", 0, 1), File("c", 1, 1)]
    >>> [file.path for file in subset(files, 2)]
    ['a', 'c']
    """
    if count is None:
        return tuple(files)
    if not 1 <= count <= len(files):
        raise DataError(f"{count} images asked for, {len(files)} there are: ask for 1 to {len(files)}")
    by_class: dict[int, list[File]] = {}
    for file in files:
        by_class.setdefault(file.label, []).append(file)
    in_turn = chain.from_iterable(zip_longest(*by_class.values()))
    taken = [file for file in in_turn if file is not None][:count]
    return tuple(sorted(taken, key=lambda file: (file.label, file.path)))


def check_readable(source: Source, files: Sequence[File]) -> None:
    """Decodes every file once; DataError names those that can't be, before anything is trained.

    What passed is remembered in the user's cache under the files' names, sizes and times.
    """
    if source.root is None:
        return
    paths = [source.root / file.path for file in files]
    stamp = "".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in paths)
    passed = cache_folder() / "checked" / hashlib.sha256(stamp.encode()).hexdigest()
    if passed.exists():
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        broken = [problem for problem in pool.map(_problem, paths) if problem]
    if broken:
        more = f"\n  ... and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise DataError(
            f"{len(broken)} of {len(paths)} images can't be read; replace or remove them:\n  "
            + "\n  ".join(broken[:10])
            + more
        )
    try:
        write_text(passed, f"{len(paths)} images of {source.root} were decoded without error\n")
    except OSError:  # a read-only home costs only the time of checking again
        return


def _problem(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{path}: {error}"
    return None


def cache_folder() -> Path:
    """Where dcvit keeps what it can make again: XDG_CACHE_HOME/dcvit, ~/.cache/dcvit by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dcvit")
