"""What one training run is, as plain values.

A `Recipe` holds everything that may change a run's numbers, except the seed (and the
device with its precision, which a record names). Alternatives
(which backbone, which rule for MixUp's alpha, which erasing) are unions of small frozen
dataclasses that the code takes apart with one `match`. The official values live in
`dcvit.baselines`. Nothing heavier than hashlib is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
import hashlib
import json
from math import isfinite
from typing import Any, Literal, get_args

Decay = Literal["paper", "area", "none"]
Fill = Literal["pixel", "zero"]


@dataclass(frozen=True, slots=True)
class Periods:
    """Borders of the three periods of training, as fractions of it in [0, 1].

    Formation (T1) lasts from 0 to `formation_end`, growth (T2) from there to
    `exploration_start`, exploration (T3) from there to 1. The defaults are chosen here:
    the paper draws the borders by eye and prints no numbers.
    """

    formation_end: float = 10 / 300
    exploration_start: float = 60 / 300

    def __post_init__(self) -> None:
        if not 0 <= self.formation_end <= self.exploration_start <= 1:
            raise ValueError(
                f"Periods({self.formation_end}, {self.exploration_start}): the borders are fractions of "
                "training with 0 <= formation_end <= exploration_start <= 1"
            )


# --- the network ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionTransformer:
    """A plain ViT with a class token, as DeiT uses it."""

    width: int
    heads: int
    depth: int = 12
    patch_size: int = 16  # pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinTransformer:
    """A Swin Transformer; width is that of the first stage and doubles at every next one."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    patch_size: int = 4  # pixels
    window: int = 7  # patches


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNet:
    """A bottleneck ResNet; the default is ResNet-50. Width is that of the first stage and doubles at every next one."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64


Backbone = VisionTransformer | SwinTransformer | ResNet


# --- MixUp's alpha over training -----------------------------------------------------------


def _require(condition: bool, given: object, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{given}: {wanted} is needed")


def _require_alpha(given: object, *values: float) -> None:
    for value in values:
        _require(isfinite(value) and value >= 0, given, "an alpha of Beta(alpha, alpha), finite and >= 0,")


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedAlpha:
    """One alpha for all of training."""

    alpha: float = 0.8  # DeiT's and Swin's setting

    def __post_init__(self) -> None:
        _require_alpha(self, self.alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicAlpha:
    """Alpha follows the measured difficulty (Eq. 5 and 6)."""

    start: float = 0.0  # Eq. 5 for an untrained model of many classes: nothing easy, all hard
    tau: float = 0.9

    def __post_init__(self) -> None:
        _require_alpha(self, self.start)
        _require(0 <= self.tau <= 1, self, "tau, the weight of the past in a moving average, in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticAlpha:
    """Alpha is constant in formation, rises as half a cosine over growth, then as a line (4.2.3)."""

    formation: float = 0.05
    exploration: float = 0.5  # where the cosine ends and the line begins
    final: float = 0.8

    def __post_init__(self) -> None:
        _require_alpha(self, self.formation, self.exploration, self.final)


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedAlpha:
    """One alpha per period (Table 1)."""

    formation: float = 0.8
    growth: float = 0.8
    exploration: float = 0.8

    def __post_init__(self) -> None:
        _require_alpha(self, self.formation, self.growth, self.exploration)


AlphaRule = FixedAlpha | DynamicAlpha | StaticAlpha | StagedAlpha


# --- erasing -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class NoErasing:
    """Images and labels stay as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomErasing:
    """One rectangle of noise in some images (Zhong et al. 2020), as DeiT and Swin use it."""

    probability: float = 0.25
    min_area: float = 0.02  # share of the image
    max_area: float = 1 / 3
    min_aspect: float = 0.3  # height / width lies in [min_aspect, 1 / min_aspect]

    def __post_init__(self) -> None:
        _require(0 <= self.probability <= 1, self, "a probability in [0, 1]")
        _require(0 <= self.min_area <= self.max_area <= 1, self, "0 <= min_area <= max_area <= 1")
        _require(0 < self.min_aspect <= 1, self, "min_aspect in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchErasing:
    """Patches of the model's own grid are erased and the label pays for them (Eq. 7)."""

    patch_size: int  # pixels
    mu: float = 0.5  # an image loses a share gamma ~ Unif[0, mu] of its patches
    fill: Fill = "pixel"
    decay: Decay = "paper"

    def __post_init__(self) -> None:
        _require(0 <= self.mu <= 1, self, "mu, the largest share of patches erased, in [0, 1]")
        _require(self.fill in get_args(Fill), self, f"fill as one of {', '.join(get_args(Fill))}")
        _require(self.decay in get_args(Decay), self, f"decay as one of {', '.join(get_args(Decay))}")


Erasing = NoErasing | RandomErasing | PatchErasing


# --- optimisation, augmentation, evaluation ------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupCosine:
    """A linear warm-up, then a cosine over all of training (not over what the warm-up leaves).

    `peak` is per 512 images; `scales` says whether `warmup` and `final` grow with the batch
    as well (Swin) or are absolute (DeiT). Both official codes step the scheduler one unit
    late: epochs 0 and 1 (DeiT), or updates 0 and 1 (Swin), run at the same rate.
    """

    peak: float
    warmup: float
    final: float
    warmup_epochs: int
    scales: Literal["peak", "all"]
    every: Literal["epoch", "update"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What happens to a single image before it joins a batch."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip: float = 0.5  # probability
    randaugment: str | None = "rand-m9-mstd0.5-inc1"  # with it, timm ignores every colour jitter
    color_jitter: float | None = None  # strength of brightness, contrast and saturation, without RandAugment
    repeats: int = 1  # views of one image in an epoch (repeated augmentation)


@dataclass(frozen=True, kw_only=True, slots=True)
class DifficultyProbe:
    """A look, at the end of some epochs, at training images that only an erasing has touched (Fig. 9).

    The model is in evaluation mode and the images are a fixed sample, cropped as for testing: clean,
    with the recipe's default RandomErasing, and with PatchErasing. Training is not affected.
    """

    patch_size: int  # pixels, of PatchErasing
    mu: float = 0.3  # A.2
    images: int = 2048  # taken from the classes in turn; all where there are fewer (chosen here)
    times: int = 10  # equally spaced, the last after the last epoch (chosen here)

    def __post_init__(self) -> None:
        _require(0 <= self.mu <= 1, self, "mu, the largest share of patches erased, in [0, 1]")
        _require(self.images >= 1 and self.times >= 1, self, "at least one image and one time")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that may change a run's numbers, except the seed."""

    backbone: Backbone
    resolution: int = 224  # pixels
    classes: int = 1000

    images: str = "imagenet1k"  # imagenet1k, imagenette, digits or folder
    train_images: int | None = None  # None: all there are
    test_images: int | None = None

    epochs: int = 300
    batch: int = 1024  # images an update, all processes together
    groups: int = 1  # parts of the batch that mix among themselves: official ranks x accumulation
    schedule: WarmupCosine
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    undecayed: tuple[str, ...] = ()  # endings of names, besides biases and vectors
    clip_norm: float | None = None
    drop_path: float = 0.1
    ema_decay: float | None = None  # maintained, never evaluated: reported numbers are the raw model
    train_mode: bool = True  # False: dropout, drop path and batch statistics stay off in training
    pretrained: Recipe | None = None  # starts from the last weights of this run, of the same seed

    augmentation: Augmentation = Augmentation()
    alpha: AlphaRule = FixedAlpha()
    cutmix_alpha: float = 1.0
    cutmix_probability: float = 0.5  # of a group being mixed by CutMix instead of MixUp
    label_smoothing: float = 0.1
    erasing: Erasing = RandomErasing()  # in formation and growth
    exploration_erasing: Erasing = RandomErasing()
    periods: Periods = Periods()
    easy_above: float = 0.8
    hard_below: float = 0.3
    difficulty_probe: DifficultyProbe | None = None

    test_crop: float = 0.875  # the centre crop's share of the resized image's side
    test_squash: bool = False  # True: resized to a square whatever its shape, nothing cropped

    def __post_init__(self) -> None:
        for name in ("resolution", "classes", "epochs", "batch", "groups"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, f"Recipe({name}={value})", "a whole number from 1 on")
        _require(
            self.batch % self.groups == 0,
            f"Recipe(batch={self.batch}, groups={self.groups})",
            "a batch that splits into equal groups",
        )
        _require_alpha(f"Recipe(cutmix_alpha={self.cutmix_alpha})", self.cutmix_alpha)
        for name in ("cutmix_probability", "label_smoothing", "drop_path", "test_crop", "easy_above"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"Recipe({name}={value})", "a number in [0, 1]")
        _require(
            0 <= self.hard_below <= self.easy_above,
            f"Recipe(hard_below={self.hard_below}, easy_above={self.easy_above})",
            "0 <= hard_below <= easy_above <= 1",
        )
        for erasing in (self.erasing, self.exploration_erasing):
            if isinstance(erasing, PatchErasing):
                self._require_tiles("PatchErasing", erasing.patch_size)
        if self.difficulty_probe is not None:
            self._require_tiles("DifficultyProbe", self.difficulty_probe.patch_size)
        match self.backbone:
            case VisionTransformer(patch_size=patch_size):
                self._require_tiles("VisionTransformer", patch_size)
            case SwinTransformer(patch_size=patch_size, depths=depths, window=window):
                self._require_tiles("SwinTransformer", patch_size)
                for stage in range(len(depths)):
                    side = self.resolution / patch_size / 2**stage
                    _require(
                        window >= 1 and side % window == 0,
                        f"SwinTransformer(window={window}) with {side:g} x {side:g} patches in stage {stage + 1}",
                        "a window that tiles every stage",
                    )
        low, high = self.augmentation.crop_scale
        _require(0 < low <= high <= 1, f"crop_scale={(low, high)}", "0 < smallest <= largest <= 1")
        _require(self.ema_decay is None or 0 <= self.ema_decay < 1, f"ema_decay={self.ema_decay}", "[0, 1)")
        _require(
            self.clip_norm is None or self.clip_norm > 0, f"clip_norm={self.clip_norm}", "a positive norm"
        )

    def _require_tiles(self, owner: str, patch_size: int) -> None:
        _require(
            patch_size >= 1 and self.resolution % patch_size == 0,
            f"{owner}(patch_size={patch_size}) does not tile a {self.resolution}x{self.resolution} image",
            f"a divisor of {self.resolution}",
        )


# --- recipes as data -----------------------------------------------------------------------


def as_data(value: Any) -> Any:
    """`value` as JSON-ready data; a dataclass becomes a dict that begins with its type's name.

    Equal values give equal data: a whole number in a field for floats is written as a float.

    >>> as_data(FixedAlpha(alpha=1))
    {'type': 'FixedAlpha', 'alpha': 1.0}
    """
    return _as_data(value, declared="")


def _as_data(value: Any, *, declared: str) -> Any:
    if is_dataclass(value):
        return {
            "type": type(value).__name__,
            **{
                field.name: _as_data(getattr(value, field.name), declared=str(field.type))
                for field in fields(value)
            },
        }
    if isinstance(value, (tuple, list)):
        return [_as_data(item, declared=declared) for item in value]
    return float(value) if type(value) is int and "float" in declared else value


@cache  # a page asks for each many times, and the JSON of a recipe is long
def run_id(recipe: Recipe, seed: int) -> str:
    """12 hex digits that name a run.

    Every field counts, defaults too: a changed default is a changed experiment, and must not
    find the old one's result.
    """
    return _digits_of(_as_text(recipe), seed)


@cache
def _as_text(recipe: Recipe) -> str:
    return json.dumps(as_data(recipe), sort_keys=True)


def id_of_data(recipe: dict[str, Any], seed: int) -> str:
    """The same from a recipe as data, as a record holds it."""
    return _digits_of(json.dumps(recipe, sort_keys=True), seed)


def _digits_of(recipe: str, seed: int) -> str:
    return hashlib.sha256(f'{{"recipe": {recipe}, "seed": {seed}}}'.encode()).hexdigest()[:12]


def foreign_fields(data: Any) -> set[str]:
    """Names in a recipe as data that this version does not have, and those that it lacks; empty for one of its own.

    >>> foreign_fields({"type": "FixedAlpha", "strength": 0.8}) == {"alpha", "strength"}
    True
    """
    if isinstance(data, list):
        return set().union(*map(foreign_fields, data))
    if not isinstance(data, dict):
        return set()
    kind = globals().get(str(data.get("type")))
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return {str(data.get("type"))}
    here = data.keys() ^ {"type", *(field.name for field in fields(kind))}
    return here.union(*map(foreign_fields, data.values()))


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields in which `new` differs from `old`: dotted name -> (old value, new value).

    A field that holds another kind of value (MixUp's rule, say) is given as a whole.
    """
    return dict(_differences("", old, new))


def _differences(prefix: str, old: Any, new: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if is_dataclass(before) and type(before) is type(after):
            yield from _differences(f"{prefix}{field.name}.", before, after)
        else:
            yield f"{prefix}{field.name}", (before, after)
