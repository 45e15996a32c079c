"""timm's transforms as they are used here: every level of every operation works with the Pillow at hand."""

from dataclasses import replace
from itertools import permutations

import numpy as np
from PIL import Image
import pytest
from scipy.stats import chisquare, ks_2samp
import torch
from torchvision.transforms import ColorJitter
import torchvision.transforms.functional as tvf

from dcvit import randaugment
from dcvit.augmentation import draw, draw_jitter, posterize, training_transform
from dcvit.baselines import DEIT_T
from dcvit.randaugment import Operation
from dcvit.rng import host_stream, stream

RANDAUGMENT = next(
    step for step in training_transform(DEIT_T).transforms if type(step).__name__ == "RandAugment"
)
IMAGE = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))


@pytest.mark.parametrize("operation", RANDAUGMENT.ops, ids=lambda operation: operation.name)
@pytest.mark.parametrize("level", [0.0, 5.0, 9.0, 10.0])
def test_every_level_that_randaugment_can_draw_works(operation, level):
    """m9-mstd0.5 draws levels up to 10 and clips there: Pillow 13 refuses to posterize to 0 bits."""
    arguments = operation.level_fn(level, operation.hparams) if operation.level_fn else ()
    changed = operation.aug_fn(IMAGE, *arguments, **operation.kwargs)
    assert (changed.size, changed.mode) == (IMAGE.size, "RGB")


@pytest.mark.parametrize("bits", range(9))
def test_posterizing_keeps_the_highest_bits(bits):
    kept = np.asarray(IMAGE) & (0xFF << (8 - bits) & 0xFF)
    assert np.array_equal(np.asarray(posterize(IMAGE, bits)), kept)


def test_randaugment_posterizes_by_ours():
    assert [each.aug_fn for each in RANDAUGMENT.ops if each.name == "PosterizeIncreasing"] == [posterize]


# --- colour jitter of a whole batch --------------------------------------------------------

BY_TORCHVISION = {
    Operation.BRIGHTNESS: tvf.adjust_brightness,
    Operation.CONTRAST: tvf.adjust_contrast,
    Operation.COLOR: tvf.adjust_saturation,
}


def test_jitter_is_torchvisions_on_pillow_images_to_the_bit():
    pixels = torch.randint(0, 256, (40, 3, 9, 14), dtype=torch.uint8, generator=stream(0, "test"))
    choices = draw_jitter(0.3, 40, host_stream(0, "test"))
    found = randaugment.apply(pixels, choices)
    for number, each in enumerate(pixels):
        image = Image.fromarray(each.permute(1, 2, 0).numpy())
        for kind, factor in zip(choices.operation[:, number], choices.strength[:, number], strict=True):
            image = BY_TORCHVISION[kind](image, factor)
        assert np.array_equal(found[number].permute(1, 2, 0), np.asarray(image)), number


@pytest.mark.parametrize("strength", [0.3, 1.5])
def test_jitter_is_drawn_as_torchvisions(strength):
    many = 3000
    choices = draw_jitter(strength, many, host_stream(0, "test"))
    bounds = (max(0.0, 1 - strength), 1 + strength)
    assert ColorJitter(strength).brightness == bounds
    generator = stream(0, "torchvision")
    with torch.random.fork_rng():
        torch.default_generator.set_state(generator.get_state())
        drawn = [ColorJitter.get_params(bounds, bounds, bounds, None) for _ in range(many)]
    for number, kind in enumerate((Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR)):
        factors = choices.strength.T[kind == choices.operation.T]
        assert len(factors) == many
        assert ks_2samp(factors, [each[number + 1] for each in drawn]).pvalue > 1e-3
    orders = dict.fromkeys(permutations(BY_TORCHVISION), 0)
    for order in choices.operation.T.tolist():
        orders[tuple(order)] += 1
    assert chisquare(list(orders.values())).pvalue > 1e-3


def test_jitter_stands_aside_for_randaugment_as_in_timm():
    augmentation = replace(DEIT_T.augmentation, color_jitter=0.3)
    both, alone = (
        draw(replace(DEIT_T, augmentation=each), seed=0, update=0).choices
        for each in (augmentation, replace(augmentation, randaugment=None))
    )
    assert np.array_equal(both.operation, draw(DEIT_T, seed=0, update=0).choices.operation)
    assert set(alone.operation.flat) == {*BY_TORCHVISION}
