"""What an evaluation of given weights found: values, their file, and a text of them. No torch.

`dcvit.scoring` measures it. A score is no run: it has no seed and no spread, and is never counted as one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
import json
from pathlib import Path
from typing import Any, Literal, get_args

from dcvit.files import write_text
from dcvit.ledger import UnusableRecord

LAYOUT = 1  # of the file; goes up when a field changes its meaning

ProtocolName = Literal["official", "timm"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a test image becomes what the network sees."""

    name: ProtocolName
    size: int  # pixels, of the square that the network sees
    crop: float  # its share of the resized image's side
    mode: str  # center, squash (both sides resized, whatever the shape) or border
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def resized(self) -> int:
        """Pixels of the side that the image is resized to before the crop.

        >>> [Protocol(name="official", size=size, crop=0.875, mode="center", interpolation="bicubic",
        ...           mean=(), std=()).resized for size in (224, 384)]
        [256, 438]
        """
        return int(self.size / self.crop)

    def __str__(self) -> str:
        size, resized, how = self.size, self.resized, self.interpolation
        if self.mode == "squash":
            cropped = "nothing cropped" if size == resized else f"centre of {size} px"
            return f"{self.name}: squashed to {resized} x {resized} px ({how}), {cropped}"
        side = "longer" if self.mode == "border" else "shorter"
        return f"{self.name}: {side} side to {resized} px ({how}), centre of {size} px"


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Top-1 and top-5 in percent, and p, the mean over images of the largest class probability."""

    top1: float
    top5: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluation of one network's weights on the test images of a data set."""

    layout: int = LAYOUT
    model: str  # timm's name, with the tag of the weights where timm fetched them
    weights: str  # sha256 of their names, shapes and values, whatever file they came in
    origin: str  # timm, or the name of the file
    protocol: Protocol
    data: Mapping[str, Any]  # name, fingerprint, classes, test_images
    outputs: int  # classes that the network tells apart
    labels: Literal["wnids", "order"]  # how classes and outputs were brought together
    over_all: Accuracies  # over all outputs
    over_present: Accuracies | None  # over those of the classes that the images have, where these are fewer
    erased: Mapping[int, Mapping[str, float]]  # k -> p and top1 with the k most attended patches erased
    environment: Mapping[str, Any]  # versions, commit, dirty, device, precision
    started: str
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Test images through loading and network, but for the passes with erased patches."""
        return self.data["test_images"] / self.seconds if self.seconds else 0.0


def as_json(score: Score) -> str:
    """The score as the text of its file."""
    return json.dumps(asdict(score), indent=1, allow_nan=False) + "\n"


def write(path: Path, score: Score) -> None:
    """Writes the score in one move."""
    write_text(path, as_json(score))


def read(path: Path) -> Score | None:
    """The score in a file; None if there is no such file.

    UnusableRecord if it is cut off, of another layout, or does not hold what a score does.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnusableRecord(
            f"{path} is cut off or damaged ({error}): remove it, and it is made again"
        ) from error
    layout = facts.get("layout") if isinstance(facts, dict) else None
    if layout != LAYOUT:
        raise UnusableRecord(f"{path} has layout {layout}; this version writes and reads layout {LAYOUT}")
    if odd := facts.keys() ^ {field.name for field in fields(Score)}:
        raise UnusableRecord(f"{path} lacks fields or has too many: {', '.join(sorted(odd))}")
    try:
        return _from_facts(facts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnusableRecord(f"{path} is damaged ({error}): remove it, and it is made again") from error


def _from_facts(facts: dict[str, Any]) -> Score:
    protocol, present = dict(facts["protocol"]), facts["over_present"]
    if protocol["name"] not in get_args(ProtocolName):
        raise ValueError(f"there is no protocol {protocol['name']!r}")
    for name in ("mean", "std"):
        protocol[name] = tuple(protocol[name])
    if lacking := {"name", "fingerprint", "classes", "test_images"} - facts["data"].keys():
        raise KeyError(f"data lacks {min(lacking)}")
    return Score(
        **{
            **facts,
            "protocol": Protocol(**protocol),
            "over_all": _accuracies(facts["over_all"]),
            "over_present": None if present is None else _accuracies(present),
            "erased": {int(k): dict(found) for k, found in facts["erased"].items()},
        }
    )


def _accuracies(facts: Mapping[str, Any]) -> Accuracies:
    found = Accuracies(**facts)
    for name, value, most in (("top1", found.top1, 100), ("top5", found.top5, 100), ("p", found.p, 1)):
        if not 0 <= value <= most:
            raise ValueError(f"{name} = {value}: 0 to {most} is possible")
    return found


def as_text(score: Score) -> str:
    """The score for a terminal, a fact a line."""
    data, over_all = score.data, score.over_all
    how = {"wnids": "wnid by wnid", "order": "in their order"}[score.labels]
    lines = [
        f"{score.model}, weights {score.weights[:12]} from {score.origin}",
        f"protocol      {score.protocol}",
        f"images        {data['test_images']:,} of {data['name']} (fingerprint {data['fingerprint'][:12]}), "
        f"{data['classes']:,} classes for {score.outputs:,} outputs, {how}",
        _line(f"over all {score.outputs:,}", over_all),
    ]
    if score.over_present is not None:
        lines.append(_line(f"over the {data['classes']:,} present", score.over_present))
    for k, found in score.erased.items():
        lines.append(
            f"{'':<14}p_{k} {found['p']:.3f}, top-1 {found['top1']:.3f} %: most attended patches erased"
        )
    environment = score.environment
    lines.append(
        f"speed         {score.images_per_second:.1f} images/s, loading included; {environment.get('precision')} on "
        f"{environment.get('device_name')}"
    )
    return "\n".join(lines)


def _line(where: str, found: Accuracies) -> str:
    return f"top-1 {found.top1:.3f} %, top-5 {found.top5:.3f} %, p_0 {found.p:.3f}  ({where})"
