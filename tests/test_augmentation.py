"""timm's transforms as they are used here: every level of every operation works with the Pillow at hand."""

import numpy as np
from PIL import Image
import pytest

from dcvit.augmentation import posterize, training_transform
from dcvit.baselines import DEIT_T

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
