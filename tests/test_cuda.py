"""What only a GPU can show: no waiting inside a step, and the CPU's numbers. Skipped without one."""

from dataclasses import replace

import pytest
import torch

from dcvit import difficulty_counts, draw_lambda, draw_rates, erase_patches, erase_rectangles, sources, stream
from dcvit.baselines import DEIT_T, RESNET_50, SWIN_T
from dcvit.batch import mixed_batch
from dcvit.datasets import pictures
from dcvit.loading import training_batches
from dcvit.recipe import DynamicAlpha, PatchErasing, Periods
from dcvit.scale import smoke
from dcvit.step import Tally, begin_state, train_step

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OURS = [
    smoke(
        replace(
            recipe, alpha=DynamicAlpha(), exploration_erasing=PatchErasing(patch_size=16), periods=borders
        )
    )
    for recipe in (DEIT_T, SWIN_T, RESNET_50)
    for borders in (Periods(0, 0), Periods(1, 1))
]


@pytest.mark.parametrize("recipe", OURS)
def test_a_step_never_waits_for_the_device(recipe):
    device = torch.device("cuda")
    state = begin_state(recipe, 0, device)
    batches = training_batches(pictures(sources.digits(), "train", recipe), recipe, seed=0, pinned=True)
    state.tally, state.forward = Tally.empty(device), state.model
    for update in range(10):
        torch.cuda.set_sync_debug_mode(
            "error" if update > 2 else "default"
        )  # the first ones may set things up
        try:
            train_step(
                state,
                recipe,
                next(batches),
                update=update,
                updates_per_epoch=22,
                seed=0,
                precision="bfloat16",
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert int(state.tally.counts_3.sum()) == 10 * recipe.batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_pieces_work_where_the_images_are(dtype):
    images = torch.randn(5, 3, 16, 24, device="cuda", dtype=dtype)
    generator = stream(0, "test", device="cuda")
    gamma = draw_rates(5, mu=0.5, generator=generator)
    for changed in (
        erase_patches(images, gamma, patch_size=8, generator=generator),
        erase_rectangles(images, generator=generator, probability=1.0),
    ):
        assert (changed.device, changed.dtype, changed.shape) == (images.device, dtype, images.shape)
    assert draw_lambda(0.01, (7,), generator=generator).isfinite().all()
    assert draw_lambda(torch.tensor(0.0, device="cuda"), (7,), generator=generator).eq(1).all()


def test_counts_are_those_of_the_cpu():
    logits = torch.randn(999, 10, generator=stream(0, "test")) * 3
    assert torch.equal(difficulty_counts(logits), difficulty_counts(logits.cuda()).cpu())


def test_a_batch_has_the_labels_and_weights_that_its_images_have():
    recipe = OURS[0]
    pixels = torch.randint(0, 256, (recipe.batch, 3, 16, 16), dtype=torch.uint8, device="cuda")
    labels = torch.arange(recipe.batch, device="cuda") % 10
    mixed = mixed_batch(
        pixels, labels, recipe, alpha=torch.tensor(0.5, device="cuda"), progress=0.5, seed=0, update=0
    )
    assert all(part.device.type == "cuda" for part in mixed)
    assert (mixed.weights + mixed.partner_weights).le(1 + 1e-6).all()
