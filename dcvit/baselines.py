"""The rows of Tables 5 and 6: official training recipes at the paper's date, and the method on them.

Read from facebookresearch/deit at b001f95 (2022-09-24) and microsoft/Swin-Transformer at
5b841aa (2022-09-25). Where the code and its README or paper disagree, the code counts:

- Both step their learning-rate scheduler one unit late (an epoch in DeiT, an update in
  Swin), and neither lets the cosine begin anew after the warm-up: Swin's `warmup_prefix`
  came on 2022-10-05.
- DeiT scales only the peak rate with the batch; Swin the warm-up and final rates too.
- timm drops every colour jitter where RandAugment is set, whatever the flag says.
- DeiT keeps an exponential moving average of its weights and reports the raw ones.
- DeiT fine-tuned at 384 with the model in evaluation mode, so without drop path. Its default
  changed on 2022-07-29; the published numbers, which the paper follows, are from before.
- Swin's code clips gradients at 5.0 (its paper says 1.0).
- Lambda, the choice between MixUp and CutMix and the flipped partner belong to one process
  and micro-batch of the official layout: `groups` counts those in a global batch.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dcvit.recipe import (
    AlphaRule,
    Augmentation,
    DifficultyProbe,
    DynamicAlpha,
    PatchErasing,
    Periods,
    Recipe,
    ResNet,
    StaticAlpha,
    SwinTransformer,
    VisionTransformer,
    WarmupCosine,
)

DEIT_T = Recipe(
    backbone=VisionTransformer(width=192, heads=3),
    groups=4,  # 4 GPUs x 256
    schedule=WarmupCosine(peak=5e-4, warmup=1e-6, final=1e-5, warmup_epochs=5, scales="peak", every="epoch"),
    undecayed=("pos_embed", "cls_token"),
    ema_decay=0.99996,
    augmentation=Augmentation(repeats=3),
)
DEIT_S = replace(DEIT_T, backbone=VisionTransformer(width=384, heads=6))
DEIT_B = replace(
    DEIT_T,
    backbone=VisionTransformer(width=768, heads=12),
    groups=16,  # 16 GPUs x 64
    difficulty_probe=DifficultyProbe(patch_size=16),  # Fig. 9
)

SWIN_T = Recipe(
    backbone=SwinTransformer(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    groups=8,  # 8 GPUs x 128
    schedule=WarmupCosine(peak=5e-4, warmup=5e-7, final=5e-6, warmup_epochs=20, scales="all", every="update"),
    undecayed=("absolute_pos_embed", "relative_position_bias_table"),
    clip_norm=5.0,
    drop_path=0.2,
)
SWIN_S = replace(
    SWIN_T,
    backbone=SwinTransformer(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    drop_path=0.3,
)
SWIN_B = replace(
    SWIN_T,
    backbone=SwinTransformer(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    groups=16,  # 8 GPUs x 64 x 2 accumulation steps
    drop_path=0.5,
    difficulty_probe=DifficultyProbe(patch_size=4),  # Fig. 9
)

# Not official: the paper says timm, DeiT-like settings and a baseline of its own, no more.
RESNET_50 = replace(DEIT_T, backbone=ResNet())


def deit_at_384(pretrained: Recipe) -> Recipe:
    """30 epochs at 384 px from the last weights of a DeiT run at 224 px, as for DeiT-B.

    The final rate equals the peak, so the rate is constant after the warm-up. Fine-tuning
    counts as exploration throughout (chosen here).
    """
    return _at_384(
        pretrained,
        batch=512,
        groups=16,  # 16 GPUs x 32
        schedule=replace(pretrained.schedule, peak=5e-6, final=5e-6),
        train_mode=False,
    )


def swin_at_384(pretrained: Recipe) -> Recipe:
    """30 epochs at 384 px, window 12, from the last weights of a Swin run at 224 px, as for Swin-B.

    Tested on images squashed to a square, whatever their shape: the official code turns the
    crop off. Fine-tuning counts as exploration throughout (chosen here).
    """
    assert isinstance(pretrained.backbone, SwinTransformer)
    return _at_384(
        pretrained,
        backbone=replace(pretrained.backbone, window=12),
        schedule=replace(pretrained.schedule, peak=2e-5, warmup=2e-8, final=2e-7, warmup_epochs=5),
        test_squash=True,
    )


def _at_384(pretrained: Recipe, **changes: Any) -> Recipe:
    """What the two have in common."""
    return replace(
        pretrained,
        pretrained=pretrained,
        resolution=384,
        epochs=30,
        weight_decay=1e-8,
        periods=Periods(0.0, 0.0),
        difficulty_probe=None,
        **changes,
    )


def ours(baseline: Recipe, alpha: AlphaRule, *, patch_size: int) -> Recipe:
    """The whole method on a baseline: a rule for alpha, and PatchErasing in exploration (5.2)."""
    return replace(baseline, alpha=alpha, exploration_erasing=PatchErasing(patch_size=patch_size))


def batch_warning(recipe: Recipe) -> str | None:
    """A sentence if a recipe for ImageNet-1k has another global batch than its official one; else None.

    The rates follow the batch by each code's rule, but the numbers in print are those of one batch.

    >>> batch_warning(DEIT_T) is None, batch_warning(replace(DEIT_T, batch=256))
    (True, 'DeiT is trained with a global batch of 256; official is 1024, and of that are the numbers in print')
    """
    official = 512 if _family(recipe) == "DeiT, fine-tuned" else 1024
    if recipe.images != "imagenet1k" or recipe.batch == official:
        return None
    return (
        f"{_family(recipe)} is trained with a global batch of {recipe.batch}; official is {official}, and of that are "
        "the numbers in print"
    )


def batch_warnings(recipes: Iterable[Recipe]) -> list[str]:
    """The warnings about several recipes, the first of each family."""
    warnings: dict[str, str] = {}
    for recipe in recipes:
        if warning := batch_warning(recipe):
            warnings.setdefault(_family(recipe), warning)
    return list(warnings.values())


def _family(recipe: Recipe) -> str:
    """Which official recipe counts for one: that of its network's kind, fine-tuned or not."""
    match recipe.backbone:
        case VisionTransformer():
            name = "DeiT"
        case SwinTransformer():
            name = "Swin"
        case ResNet():
            name = "ResNet-50"
    return name if recipe.pretrained is None else f"{name}, fine-tuned"


# 5.1: dynamic for the small models, static for the large ones; patches are the model's own
OUR_DEIT_T = ours(DEIT_T, DynamicAlpha(), patch_size=16)
OUR_DEIT_S = ours(DEIT_S, DynamicAlpha(), patch_size=16)
OUR_DEIT_B = ours(DEIT_B, StaticAlpha(), patch_size=16)
OUR_SWIN_T = ours(SWIN_T, DynamicAlpha(), patch_size=4)
OUR_SWIN_S = ours(SWIN_S, DynamicAlpha(), patch_size=4)
OUR_SWIN_B = ours(SWIN_B, StaticAlpha(), patch_size=4)
OUR_RESNET_50 = ours(RESNET_50, DynamicAlpha(), patch_size=16)  # the paper does not say (chosen here)
