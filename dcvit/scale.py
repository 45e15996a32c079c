"""The same experiment at three sizes: pure functions from the paper's recipe to a smaller twin.

    smoke   scikit-learn's digits, 16 px, 32 epochs: two CPU cores, minutes. Proves that the
            code runs; says nothing about the paper.
    small   Imagenette, 64 px, 300 epochs: one GPU, a minute or two of computing a run.
    paper   ImageNet-1k, 224 and 384 px, 300 and 30 epochs: the recipe as it is.

A twin keeps its family's proportions (DeiT T : S : B = 1 : 2 : 4 in width; Swin T and S of one
width, B 4/3 of it, S and B three times as deep in the longest stage), the method and all that
the paper compares. What else changes shows in `recipe.differences`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

from dcvit.recipe import (
    Backbone,
    DifficultyProbe,
    Erasing,
    PatchErasing,
    Recipe,
    ResNet,
    SwinTransformer,
    VisionTransformer,
    WarmupCosine,
)

Scale = Literal["smoke", "small", "paper"]
SCALES: tuple[Scale, ...] = get_args(Scale)


def at_scale(recipe: Recipe, scale: Scale) -> Recipe:
    """The twin of a paper-scale recipe, and of the run that it starts from. ValueError names the scales."""
    twins: dict[str, Callable[[Recipe], Recipe]] = {"smoke": smoke, "small": small, "paper": paper}
    if scale not in twins:
        raise ValueError(f"scale {scale!r}: one of {', '.join(SCALES)}")
    twin = twins[scale](recipe)
    if recipe.pretrained is not None:
        twin = replace(twin, pretrained=at_scale(recipe.pretrained, scale))
    return twin


def paper(recipe: Recipe) -> Recipe:
    """The recipe itself."""
    return recipe


def small(recipe: Recipe) -> Recipe:
    """64 px (112 for 384), half as wide, Imagenette; the absolute learning rates stay as they are."""
    batch = 256
    return replace(
        recipe,
        backbone=_small_backbone(recipe.backbone),
        resolution=_resolution(recipe, pretraining=64, fine_tuning=112),
        classes=10,
        images="imagenette",
        batch=batch,
        schedule=_with_rates(recipe.schedule, batch=batch, factor=recipe.batch / batch),
        erasing=_finer(recipe.erasing, by=2),
        exploration_erasing=_finer(recipe.exploration_erasing, by=2),
        difficulty_probe=_finer_probe(recipe.difficulty_probe, by=2),
    )


def smoke(recipe: Recipe) -> Recipe:
    """16 px (28 for 384), four thin blocks (Swin: two stages), 32 epochs of handwritten digits (20 of 384).

    Epochs, batch, learning rate, warm-up, crop scale, flip, RandAugment and repeated
    augmentation are those under which a thousand digits can be learnt in seconds: with DeiT's
    values a run ends at 19 to 42 %, and three views of a third of so few images cost another
    20 points. Fine-tuning needs only some of the digits.
    """
    batch = 64
    by = 2 if isinstance(recipe.backbone, SwinTransformer) else 4
    peak = 3e-3 if isinstance(recipe.backbone, SwinTransformer) else 2e-3
    if recipe.pretrained is not None:
        peak /= 10
    return replace(
        recipe,
        backbone=_smoke_backbone(recipe.backbone),
        resolution=_resolution(recipe, pretraining=16, fine_tuning=28),
        classes=10,
        images="digits",
        train_images=None if recipe.pretrained is None else 384,
        epochs=32 if recipe.pretrained is None else 20,
        batch=batch,
        schedule=replace(
            recipe.schedule,
            peak=peak * 512 / batch,
            warmup=peak / 10,
            final=min(1e-5, peak),
            warmup_epochs=2,
            scales="peak",
        ),
        augmentation=replace(
            recipe.augmentation, crop_scale=(0.6, 1.0), flip=0.0, randaugment=None, repeats=1
        ),
        erasing=_finer(recipe.erasing, by=by),
        exploration_erasing=_finer(recipe.exploration_erasing, by=by),
        difficulty_probe=_finer_probe(recipe.difficulty_probe, by=by, images=256, times=5),
    )


def on_images(
    recipe: Recipe, *, images: str, classes: int, train_images: int | None, test_images: int | None
) -> Recipe:
    """The recipe, and the run that it starts from, on a set of images.

    Numbers that are given go before the recipe's own, and its own mean nothing on another set.
    """
    own = images == recipe.images
    changes: dict[str, Any] = dict(images=images, classes=classes)
    if recipe.pretrained is not None:
        changes["pretrained"] = on_images(
            recipe.pretrained, **changes, train_images=train_images, test_images=test_images
        )
    return replace(
        recipe,
        **changes,
        train_images=train_images or (recipe.train_images if own else None),
        test_images=test_images or (recipe.test_images if own else None),
    )


def _resolution(recipe: Recipe, *, pretraining: int, fine_tuning: int) -> int:
    """7/4 of the base size where the paper goes from 224 to 384 px."""
    return pretraining if recipe.pretrained is None else fine_tuning


def _with_rates(schedule: WarmupCosine, *, batch: int, factor: float) -> WarmupCosine:
    """The schedule whose absolute rates at `batch` are those that `schedule` has at factor x batch."""
    others = factor if schedule.scales == "all" else 1.0
    return replace(
        schedule,
        peak=schedule.peak * factor,
        warmup=schedule.warmup * others,
        final=schedule.final * others,
    )


def _finer(erasing: Erasing, *, by: int) -> Erasing:
    """Patches shrink with the model's own."""
    if isinstance(erasing, PatchErasing):
        return replace(erasing, patch_size=erasing.patch_size // by)
    return erasing


def _finer_probe(probe: DifficultyProbe | None, *, by: int, **changes: int) -> DifficultyProbe | None:
    return probe and replace(probe, patch_size=probe.patch_size // by, **changes)


def _small_backbone(backbone: Backbone) -> Backbone:
    match backbone:
        case VisionTransformer(width=width):
            return replace(backbone, width=width // 2, patch_size=8)
        case SwinTransformer(width=width, window=window):
            return replace(backbone, width=width // 2, patch_size=2, window=_twin_window(window))
        case ResNet():
            return backbone


def _smoke_backbone(backbone: Backbone) -> Backbone:
    match backbone:
        case VisionTransformer(width=width):
            return VisionTransformer(width=width // 8, heads=width // 96, depth=4, patch_size=4)
        case SwinTransformer(width=width, depths=depths, window=window):
            deep = max(depths) // 6
            return SwinTransformer(
                width=width * 5 // 16,
                depths=(2, deep),
                heads=(1, 2),
                patch_size=2,
                window=_twin_window(window),
            )
        case ResNet():
            return ResNet(depths=(1, 1, 1, 1), width=16)


def _twin_window(window: int) -> int:
    """4 patches in training; 7 in fine-tuning, where the original goes from 7 to 12."""
    return 4 if window == 7 else 7
