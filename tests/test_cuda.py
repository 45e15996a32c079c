"""What only a GPU can show: no waiting inside a step, and the CPU's numbers. Skipped without one."""

from dataclasses import replace

import numpy as np
from PIL import Image
import pytest
import torch

from dcvit import (
    datasets,
    difficulty_counts,
    draw_lambda,
    draw_rates,
    erase_patches,
    erase_rectangles,
    randaugment,
    sources,
    stored,
    stream,
)
from dcvit.baselines import DEIT_T, RESNET_50, SWIN_T
from dcvit.batch import mixed_batch
from dcvit.datasets import pictures
from dcvit.draws import draw_batch
from dcvit.feed import Feed
from dcvit.layout import pieces_of
from dcvit.loading import training_batches
from dcvit.recipe import Augmentation, DynamicAlpha, PatchErasing, Periods, StaticAlpha
from dcvit.scale import smoke
from dcvit.state import Tally, begin_state
from dcvit.step import train_step
from dcvit.transform import reference, transform, workspace_for
from tests.helpers import image_folder, tiny

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
OURS = [
    smoke(replace(recipe, alpha=alpha, exploration_erasing=erasing, periods=borders))
    for recipe in (DEIT_T, SWIN_T, RESNET_50)  # DeiT averages its weights, Swin clips its gradients
    for alpha, erasing, borders in (
        (DynamicAlpha(), PatchErasing(patch_size=16), Periods(0, 0)),
        (StaticAlpha(), PatchErasing(patch_size=16, fill="zero"), Periods(0, 0)),
        (DynamicAlpha(), PatchErasing(patch_size=16), Periods(1, 1)),  # rectangles
    )
]


def trained(recipe, updates, *, compiling="off", at_most=None, waits_until=None):
    """The state after so many updates, of which those from `waits_until` on may not wait for the device."""
    state = begin_state(recipe, 0, CUDA, compiling=compiling)
    batches = training_batches(pictures(sources.digits(), "train", recipe), recipe, seed=0, pinned=True)
    state.tally = Tally.empty(CUDA)
    state.model.train(recipe.train_mode)
    for update in range(updates):
        batch = next(batches)
        strict = waits_until is not None and update >= waits_until
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        try:
            train_step(
                state,
                recipe,
                batch,
                update=update,
                updates_per_epoch=22,
                seed=0,
                precision="bfloat16",
                pieces=pieces_of(recipe, at_most=at_most)[0],
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return state


@pytest.mark.parametrize("at_most", [None, 16, 8])
@pytest.mark.parametrize("recipe", OURS)
def test_a_step_never_waits_for_the_device(recipe, at_most):
    """In one piece, in pieces of whole groups, and in parts of groups; the first updates may set things up."""
    state = trained(recipe, 53, at_most=at_most, waits_until=3)
    assert int(state.tally.counts_3.sum()) == 53 * recipe.batch


@pytest.mark.parametrize(("compiling", "at_most"), [("default", None), ("graphs", None), ("graphs", 32)])
@pytest.mark.parametrize("recipe", [OURS[0], OURS[3], OURS[6]])
def test_a_compiled_step_does_not_wait_either_and_learns_the_same(recipe, compiling, at_most):
    """Also in pieces, whose gradients add up across graphs. Dropped paths are drawn otherwise there."""
    recipe = replace(recipe, drop_path=0.0)
    eager = trained(recipe, 20, at_most=at_most)
    compiled = trained(recipe, 20, compiling=compiling, at_most=at_most, waits_until=10)
    found, expected = (state.tally.means(recipe.batch) for state in (compiled, eager))
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.1)
    assert compiled.workspace.fused is not None, "the batch transform was not compiled"


@pytest.mark.parametrize("recipe", OURS[:3])
def test_the_compiled_batch_transform_is_what_its_definition_says(recipe):
    """Noise, zeros and rectangles; and fewer images than the workspace has room for."""
    shape = (recipe.batch, 3, 16, 16)
    room = workspace_for(shape, CUDA)
    for images in (recipe.batch, recipe.batch // recipe.groups):
        smaller = replace(recipe, batch=images, groups=recipe.groups * images // recipe.batch)
        pixels = torch.randint(0, 256, (images, *shape[1:]), dtype=torch.uint8, device=CUDA)
        draws = draw_batch(
            pixels.shape, smaller, alpha=torch.tensor(0.5, device=CUDA), progress=0.5, seed=0, update=0
        )
        found = transform(pixels, draws, room)
        torch.testing.assert_close(found, reference(pixels, draws), rtol=1e-5, atol=1e-5)
    assert room.fused is not None


@pytest.mark.parametrize("how", ["files", "held"])
def test_feeding_does_not_wait_for_the_device(how, tmp_path, monkeypatch):
    """Neither crops of what is held there, nor flips and RandAugment of what comes from the host."""
    monkeypatch.setattr(datasets, "HELD_BYTES", 1 << 20 if how == "held" else 0)
    if how == "files":
        monkeypatch.setattr(stored, "SHARE", 0.0)
    recipe = tiny(resolution=32, batch=6, epochs=4, augmentation=Augmentation(repeats=3))
    train = pictures(sources.from_folder(image_folder(tmp_path / "images", size=40)), "train", recipe)
    feed = Feed(augmentation="device")
    batches = training_batches(train, recipe, seed=0, feed=feed, device=CUDA, pinned=True, workers=0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [next(batches) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(pixels.shape == (6, 3, 32, 32) for pixels, _ in found)


def test_randaugment_gives_what_it_gives_on_a_cpu():
    """To the bit for colours; geometry and sharpness to one level, as a GPU adds a product in one rounding."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (90, 3, 40, 33), dtype=np.uint8))
    pixels[::3] = pixels[::3] // 64 * 8 + 100  # few values
    for operation in list(randaugment.Operation)[1:]:
        drawn = randaugment.draw(randaugment.settings("rand-m9-mstd0.5-inc1-n1-p1"), 9000, (40, 33), rng)
        choices = drawn[np.flatnonzero(drawn.operation[0] == operation)[:90]]
        expected = randaugment.apply(pixels, choices)
        found = randaugment.apply(pixels.cuda(), choices).cpu()
        worst = (expected.int() - found.int()).abs().max()
        assert worst <= (0 if operation <= randaugment.Operation.COLOR else 1), operation


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


@pytest.mark.parametrize("how", ["files", "held", "decoded by the GPU", "a cache"])
def test_batches_that_the_gpu_augments_are_those_of_the_cpu(how, tmp_path, monkeypatch):
    root = image_folder(tmp_path / "images", size=40)
    for path in list((root / "train").rglob("*.png")):
        Image.open(path).resize((40, 40)).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    monkeypatch.setattr(datasets, "HELD_BYTES", 1 << 20 if how == "held" else 0)
    if how in ("files", "decoded by the GPU"):  # nothing fits into memory
        monkeypatch.setattr(stored, "SHARE", 0.0)
    recipe = tiny(resolution=32, batch=6, augmentation=Augmentation(repeats=3, randaugment=None))
    train = pictures(sources.from_folder(root), "train", recipe)
    feed = Feed(
        augmentation="device",
        cache=tmp_path / "cache" if how == "a cache" else None,
        decoder="gpu" if how == "decoded by the GPU" else "cpu",
    )
    by_cpu = training_batches(train, recipe, seed=0, feed=replace(feed, decoder="cpu"))
    by_gpu = training_batches(train, recipe, seed=0, feed=feed, device=CUDA, pinned=True, workers=2)
    for (expected, labels), (found, its) in zip(by_cpu, by_gpu, strict=True):
        assert found.device.type == its.device.type == "cuda"
        assert found.is_contiguous()
        assert torch.equal(labels, its.cpu())
        difference = (expected.int() - found.cpu().int()).abs().float()
        # nvJPEG fills in colours that a file has for every other pixel otherwise than libjpeg-turbo
        assert difference.mean() <= (8 if how == "decoded by the GPU" else 0.1)
