"""What goes by the clock alone: updates of an epoch, MixUp's alpha, the learning rate.

Floats in, floats out; no torch.
"""

from math import cos, pi

from dcvit.errors import DataError
from dcvit.recipe import Periods, Recipe, StagedAlpha, StaticAlpha

REPEATS_ROUND = 256  # DeiT's sampler rounds the images of an epoch down to a multiple of this


def static_alpha(progress: float, periods: Periods, *, rule: StaticAlpha = StaticAlpha()) -> float:
    """Alpha of Beta(alpha, alpha) at `progress` in [0, 1] of training, by the static rule (4.2.3, Fig. 5).

        0.05                                          in formation
        0.05 + 0.45 (1 - cos(pi s)) / 2   s: 0 -> 1   in growth
        0.5  + 0.3 s                      s: 0 -> 1   in exploration

    Continuous and non-decreasing. ValueError if `progress` lies outside [0, 1].

    >>> at = Periods(formation_end=0.1, exploration_start=0.2)
    >>> [round(static_alpha(t, at), 3) for t in (0, 0.1, 0.15, 0.2, 0.6, 1)]
    [0.05, 0.05, 0.275, 0.5, 0.65, 0.8]
    """
    _require_progress(progress)
    begin, end = periods.formation_end, periods.exploration_start
    if progress < begin:
        return rule.formation
    if progress < end:
        share = (progress - begin) / (end - begin)
        return rule.formation + (rule.exploration - rule.formation) * (1 - cos(pi * share)) / 2
    share = (progress - end) / (1 - end) if end < 1 else 1.0
    return rule.exploration + (rule.final - rule.exploration) * share


def staged_alpha(progress: float, periods: Periods, rule: StagedAlpha) -> float:
    """Alpha at `progress` in [0, 1] of training when each period has its own (Table 1).

    >>> staged_alpha(0.01, Periods(), StagedAlpha(formation=0.05)), staged_alpha(0.5, Periods(), StagedAlpha())
    (0.05, 0.8)
    """
    _require_progress(progress)
    if progress < periods.formation_end:
        return rule.formation
    if progress < periods.exploration_start:
        return rule.growth
    return rule.exploration


def _require_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress {progress}: the share of training done so far, in [0, 1]")


def updates_per_epoch(images: int, recipe: Recipe) -> int:
    """Full batches in an epoch; what is left over waits for the next (drop_last). DataError if there is none."""
    used = images
    if recipe.augmentation.repeats > 1 and images >= REPEATS_ROUND:
        used -= images % REPEATS_ROUND
    updates = used // recipe.groups // (recipe.batch // recipe.groups)
    if updates == 0:
        raise DataError(
            f"a batch of {recipe.batch} is larger than the {used} training images that an epoch takes"
            + (f" (of {images}, rounded down to a multiple of {REPEATS_ROUND})" if used < images else "")
            + ": give more images"
        )
    return updates


def learning_rate(recipe: Recipe, update: int, updates_per_epoch: int) -> float:
    """The learning rate of update number `update`, counted from 0.

    Linear from the warm-up rate to the peak, then, from the end of the warm-up on, the cosine
    that spans all of training:

        final + (peak - final) (1 + cos(pi t / T)) / 2

    with t counted in whole epochs (DeiT) or in updates (Swin) and one unit late, as both
    official codes step their scheduler after the unit it should have steered. The peak is
    scaled by batch / 512 and so are, for Swin, the warm-up and the final rate.
    """
    schedule = recipe.schedule
    scale = recipe.batch / 512
    if schedule.every == "epoch":
        unit, unit_per_epoch = update // updates_per_epoch, 1
    else:
        unit, unit_per_epoch = update, updates_per_epoch
    return cosine_after_warmup(
        max(unit - 1, 0),
        total=recipe.epochs * unit_per_epoch,
        warmup=schedule.warmup_epochs * unit_per_epoch,
        peak=schedule.peak * scale,
        begin=schedule.warmup * (scale if schedule.scales == "all" else 1),
        final=schedule.final * (scale if schedule.scales == "all" else 1),
    )


def cosine_after_warmup(t: int, *, total: int, warmup: int, peak: float, begin: float, final: float) -> float:
    """The rate at time t of a warm-up that cuts off the first part of a cosine.

    >>> [cosine_after_warmup(t, total=4, warmup=2, peak=1.0, begin=0.5, final=0.0) for t in (0, 1, 4)]
    [0.5, 0.75, 0.0]
    """
    if t < warmup:
        return begin + (peak - begin) * t / warmup
    return final + (peak - final) * (1 + cos(pi * t / total)) / 2
