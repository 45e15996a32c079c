"""Published weights of the official baselines, which fill a table's baseline column by evaluation alone. No torch.

What was measured lies in OUT/published, a file for each network and data set. It is no record of a
run: one evaluation of one set of weights has no seed and no spread, so no claim is judged by it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, SWIN_B, SWIN_S, SWIN_T, deit_at_384, swin_at_384
from dcvit.ledger import UnusableRecord
from dcvit.recipe import Recipe
from dcvit.runs import Place
from dcvit.scores import ProtocolName, Score, read
from dcvit.sources import IMAGENET_TEST, Source
from dcvit.tables import Cell, Table

METRICS = ("top1", "top5")
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Published weights of an official recipe, and what is printed of them: top-1 and top-5, percent."""

    name: str  # timm's, with the tag: the untagged names of Swin-S and Swin-B are of other weights
    recipe: Recipe
    official: tuple[float, float]  # by the authors' code
    timm: tuple[float, float]  # by timm's, which crops less


WEIGHTS = (
    Weights(
        name="deit_tiny_patch16_224.fb_in1k",
        recipe=DEIT_T,
        official=(72.202, 91.124),
        timm=(72.190, 91.100),
    ),
    Weights(
        name="deit_small_patch16_224.fb_in1k",
        recipe=DEIT_S,
        official=(79.854, 94.968),
        timm=(79.856, 95.056),
    ),
    Weights(
        name="deit_base_patch16_224.fb_in1k",
        recipe=DEIT_B,
        official=(81.846, 95.594),
        timm=(81.980, 95.740),
    ),
    Weights(
        name="deit_base_patch16_384.fb_in1k",
        recipe=deit_at_384(DEIT_B),
        official=(82.890, 96.222),
        timm=(83.108, 96.376),
    ),
    Weights(
        name="swin_tiny_patch4_window7_224.ms_in1k",
        recipe=SWIN_T,
        official=(81.2, 95.5),
        timm=(81.388, 95.540),
    ),
    Weights(
        name="swin_small_patch4_window7_224.ms_in1k",
        recipe=SWIN_S,
        official=(83.2, 96.2),
        timm=(83.228, 96.326),
    ),
    Weights(
        name="swin_base_patch4_window7_224.ms_in1k",
        recipe=SWIN_B,
        official=(83.5, 96.5),
        timm=(83.604, 96.450),
    ),
    Weights(
        name="swin_base_patch4_window12_384.ms_in1k",
        recipe=swin_at_384(SWIN_B),
        official=(84.5, 97.0),
        timm=(84.478, 96.886),
    ),
)
WEIGHTS_OF = {weights.recipe: weights for weights in WEIGHTS}
TAGGED = {weights.name.split(".")[0]: weights.name for weights in WEIGHTS}


def tagged(name: str) -> str:
    """timm's name with the tag of the official weights, if it is one of theirs and has none; else the name.

    >>> tagged("swin_base_patch4_window7_224"), tagged("resnet50")
    ('swin_base_patch4_window7_224.ms_in1k', 'resnet50')
    """
    return TAGGED.get(name, name)


def printed(name: str, protocol: ProtocolName) -> tuple[float, float] | None:
    """What is printed of the weights with this full name under a protocol: top-1 and top-5; None if nothing is."""
    found = next((weights for weights in WEIGHTS if weights.name == name), None)
    return None if found is None else found.official if protocol == "official" else found.timm


# --- a table's baseline column -------------------------------------------------------------


def replaced_cells(tables: Iterable[Table]) -> list[Cell]:
    """The cells that published weights can fill: accuracies of baselines that gains are over.

    ValueError if the tables have none.
    """
    tables = tuple(tables)
    found = dict.fromkeys(
        over
        for table in tables
        for over in map(table.baseline_of, table.cells)
        if over is not None and over.metric in METRICS and over.recipe in WEIGHTS_OF
    )
    if not found:
        names = ", ".join(table.name for table in tables)
        raise ValueError(
            f"--baseline published: no baseline of {names} has published weights; leave the option out"
        )
    return list(found)


def path_of(out: Path, name: str, source: Source, *, test_images: int | None) -> Path:
    """Where the score of published weights lies."""
    some = "" if test_images is None else f"-{test_images}"
    return out / "published" / f"{name}-{source.fingerprint[:12]}{some}.json"


def file_of(out: Path, name: str) -> Path | None:
    """The file with published weights that somebody put into OUT/published, for machines without a network."""
    paths = (out / "published" / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def read_scores(
    cells: Sequence[Cell], source: Source | None, out: Path, *, test_images: int | None
) -> dict[Cell, Score | None]:
    """The scores that there are for cells of baselines; None for one that nobody has made yet, or without images.

    UnusableRecord for a file that can't be trusted.
    """
    names = {cell: WEIGHTS_OF[cell.recipe].name for cell in cells}
    return {
        cell: _score(name, source, out, test_images=test_images) if source else None
        for cell, name in names.items()
    }


def _score(name: str, source: Source, out: Path, *, test_images: int | None) -> Score | None:
    path = path_of(out, name, source, test_images=test_images)
    score = read(path)
    if score is None:
        return None
    if (score.model, score.protocol.name) != (name, "official"):
        raise UnusableRecord(
            f"{path} is of {score.model} by the protocol {score.protocol.name}: {name} by the official one is needed. "
            "Remove it, and it is made again"
        )
    if score.data["fingerprint"] != source.fingerprint or test_images not in (
        None,
        score.data["test_images"],
    ):
        raise UnusableRecord(f"{path} was made from other images: remove it, and it is made again")
    return score


def to_evaluate(scores: Mapping[Cell, Score | None], wanted: Iterable[Cell]) -> list[str]:
    """timm's names of the weights that wanted cells lack a score of."""
    return list(
        dict.fromkeys(
            WEIGHTS_OF[cell.recipe].name for cell in wanted if cell in scores and scores[cell] is None
        )
    )


def evaluate(names: Sequence[str], place: Place, *, test_images: int | None) -> None:
    """Evaluates published weights by the official protocol and writes their scores.

    EnvironmentProblem for weights that can't be had; what was measured before stays.
    """
    from dcvit.devices import resolve
    from dcvit.scoring import score_published

    device = resolve(place.device)
    for number, name in enumerate(names, start=1):
        score = score_published(
            name,
            place.source,
            path_of(place.out, name, place.source, test_images=test_images),
            checkpoint=file_of(place.out, name),
            device=device,
            workers=place.workers,
            test_images=test_images,
        )
        found = score.over_all
        print(
            f"[{number}/{len(names)}] published weights {name}: top-1 {found.top1:.3f}, top-5 {found.top5:.3f}"
            f"{beside_print(score)}",
            flush=True,
        )


def beside_print(score: Score) -> str:
    """How far a score on all of ImageNet's test images is from what is printed; "" where nothing is.

    Only of weights that timm fetched, or that were given in their place: others may share the name.
    """
    numbers = printed(score.model, score.protocol.name)
    if (
        numbers is None
        or score.data["test_images"] != IMAGENET_TEST
        or score.outputs != score.data["classes"]
    ):
        return ""
    top1, top5 = numbers
    return (
        f" (printed: {top1:g} and {top5:g}; here {score.over_all.top1 - top1:+.3f} and "
        f"{score.over_all.top5 - top5:+.3f})"
    )
