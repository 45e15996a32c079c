"""Where the images are, whether they are what a run needs, and what names them. No torch.

A source is a list of files; its fingerprint goes into every record, so that a record answers
only for the images it was made from.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
import hashlib
from importlib.util import find_spec
from io import BytesIO
from itertools import chain, zip_longest
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Literal

from dcvit.archives import fetch, unpack
from dcvit.errors import DataError
from dcvit.files import cache_folder, write_text
from dcvit.scale import Scale
from dcvit.shards import entries

SplitName = Literal["train", "val"]

IMAGENETTE = "imagenette2-160"
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"
# As in torchvision 0.29 (datasets/imagenette.py), whose authors have seen the file; there is no other sum of it in
# public. An MD5 keeps out damage and strangers, not somebody who could make two archives of one sum beforehand.
IMAGENETTE_MD5 = "e793b78cc4c9e9a4ccc0c1155377a412"
IMAGENETTE_CLASSES = (
    *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
    *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
)
IMAGENET_TRAIN, IMAGENET_TEST = 1_281_167, 50_000
IMAGENETTE_TRAIN = 9_469
DIGITS_TRAIN, DIGITS_TEST = 1438, 359  # every fifth of the 1,797 digits is held out
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
KINDS = (
    "JPEG",
    "PNG",
    "BMP",
    "PPM",
    "TIFF",
    "WEBP",
)  # by content; Pillow would run what calls itself PostScript, too


@dataclass(frozen=True)
class File:
    """One image: the file it lies in, below the source's root, its class, its size in bytes.

    In a shard, `offset` is where its bytes begin.
    """

    path: str
    label: int
    size: int
    offset: int | None = None

    def open(self, root: Path) -> IO[bytes]:
        """The image's bytes, as a file."""
        if self.offset is None:
            return open(root / self.path, "rb")
        with open(root / self.path, "rb") as shard:
            shard.seek(self.offset)
            return BytesIO(shard.read(self.size))

    def __str__(self) -> str:
        return self.path if self.offset is None else f"{self.path} at byte {self.offset}"


@dataclass(frozen=True, eq=False)
class Source:
    """The images of a run. There are no files for those that come in a package or through timm."""

    name: str  # as in Recipe.images
    fingerprint: str
    classes: tuple[str, ...]
    root: Path | None = None
    train: tuple[File, ...] = ()
    val: tuple[File, ...] = ()
    timm: str = ""  # timm's name of the set, hfds/...

    def count(self, split: SplitName) -> int:
        """How many images a split has."""
        if self.name == "digits":
            return DIGITS_TRAIN if split == "train" else DIGITS_TEST
        if self.timm:
            return IMAGENET_TRAIN if split == "train" else IMAGENET_TEST
        return len(getattr(self, split))


def find(data: str | None, scale: Scale, *, download: bool = True) -> Source:
    """The images for a scale: what `--data` names, else the digits (smoke) or DCVIT_DATA (small, paper).

    Imagenette is fetched where it is missing, if `download` says so and the network allows.
    DataError says what is missing and where to put it.
    """
    if data is None and scale == "smoke":
        return digits()
    if data == "":
        raise DataError("--data is empty: name a folder with train/ and val/ (is DCVIT_DATA set?)")
    place = data if data is not None else os.environ.get("DCVIT_DATA")
    if place and place.startswith("hfds/"):
        return from_timm(place, scale)
    if place and place.startswith("wds/"):
        source = from_shards(Path(place.removeprefix("wds/")))
    elif scale == "small":
        source = from_folder(imagenette_root(place, download=download))
    elif not place:
        raise DataError(
            "no images: scale paper reads ImageNet-1k. Give --data FOLDER, or set DCVIT_DATA, to a "
            "folder with train/ and val/ of 1,000 class folders each"
        )
    else:
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


def from_timm(name: str, scale: Scale) -> Source:
    """ImageNet-1k as one of timm's named sets; its name is its identity, and nothing is opened yet."""
    if scale != "paper":
        raise DataError(f"{name}: timm's named sets are for --scale paper. At {scale} give a folder")
    return Source(
        name="imagenet1k",
        fingerprint=hashlib.sha256(name.encode()).hexdigest(),
        classes=tuple(map(str, range(1000))),
        timm=name,
    )


def from_shards(root: Path) -> Source:
    """The images of a folder of WebDataset shards, *train*.tar and *val*.tar."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: wds/FOLDER takes one that holds *train*.tar and *val*.tar")
    train, val = (
        tuple(File(entry.shard, entry.label, entry.size, entry.offset) for entry in entries(root, split))
        for split in ("train", "val")
    )
    if odd := {file.label for file in train} ^ {file.label for file in val}:
        raise DataError(f"{root}: class {min(odd)} is in the shards of only one of train and val")
    classes = tuple(map(str, range(1 + max(file.label for file in train))))
    return Source("folder", _fingerprint(train, val), classes, root, train, val)


def _fingerprint(train: Sequence[File], val: Sequence[File]) -> str:
    """Names the images by their files and sizes."""
    lines = "".join(f"{file} {file.size} {file.label}\n" for file in (*train, *val))
    return hashlib.sha256(lines.encode()).hexdigest()


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
    return Source(
        name="imagenette" if classes == IMAGENETTE_CLASSES else "folder",
        fingerprint=_fingerprint(train, val),
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
        _fetch_imagenette(parent)
    except (OSError, DataError) as error:
        raise DataError(
            f"Imagenette is not in {parent} and could not be downloaded ({error}). Scale small needs it: fetch "
            f"{IMAGENETTE_URL}, unpack it so that {parent / IMAGENETTE / 'train'} and {parent / IMAGENETTE / 'val'} "
            "exist, and give --data " + str(parent)
        ) from error
    return parent / IMAGENETTE


def _fetch_imagenette(parent: Path) -> None:
    """Makes parent/imagenette2-160 from the archive on the web, in one move and only if that is the known one."""
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{IMAGENETTE}.", dir=parent) as work:
        archive, unpacked = Path(work, "archive.tgz"), Path(work, "unpacked")
        fetch(IMAGENETTE_URL, archive, checksum=IMAGENETTE_MD5, algorithm="md5", max_bytes=200_000_000)
        unpack(archive, unpacked, max_bytes=400_000_000, max_members=20_000)
        for split in ("train", "val"):
            if not (unpacked / IMAGENETTE / split).is_dir():
                raise DataError(f"{IMAGENETTE_URL} holds no {IMAGENETTE}/{split}/")
        os.rename(unpacked / IMAGENETTE, parent / IMAGENETTE)


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
    root = source.root
    stamp = "".join(
        f"{root / str(file)} {file.size} {(root / file.path).stat().st_mtime_ns}\n" for file in files
    )
    passed = cache_folder() / "checked" / hashlib.sha256(stamp.encode()).hexdigest()
    if passed.exists():
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        broken = [problem for problem in pool.map(partial(_problem, root), files) if problem]
    if broken:
        more = f"\n  ... and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise DataError(
            f"{len(broken)} of {len(files)} images can't be read; replace or remove them:\n  "
            + "\n  ".join(broken[:10])
            + more
        )
    with suppress(OSError):  # a read-only home costs only the time of checking again
        write_text(passed, f"{len(files)} images of {root} were decoded without error\n")


def _problem(root: Path, file: File) -> str | None:
    from PIL import Image

    try:
        with file.open(root) as content, Image.open(content, formats=KINDS) as image:
            pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > most:  # Pillow itself only warns, up to twice as many
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than the {most:,} that are decoded"
                )
            image.convert("RGB")
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        return f"{root / str(file)}: {error}"
    return None
