"""From pixels to a mixed batch: the same draws made again by hand, image by image."""

from dataclasses import asdict, replace
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st
import pytest
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
import torch

from dcvit.batch import mixed_batch, normalise
from dcvit.erasing import draw_rates, patch_mask, rectangle_mask
from dcvit.layout import pieces_of
from dcvit.losses import two_label_loss
from dcvit.mixing import cutmix_map, draw_lambda
from dcvit.recipe import (
    NoErasing,
    PatchErasing,
    Periods,
    RandomErasing,
    Recipe,
    VisionTransformer,
    WarmupCosine,
)
from dcvit.rng import stream

BATCH, SIZE = 12, 16
PLAIN = Recipe(
    backbone=VisionTransformer(width=24, heads=2, patch_size=4),
    resolution=SIZE,
    classes=10,
    batch=BATCH,
    groups=3,
    schedule=WarmupCosine(peak=1.0, warmup=0.1, final=0.0, warmup_epochs=1, scales="peak", every="epoch"),
    erasing=NoErasing(),
    exploration_erasing=NoErasing(),
    periods=Periods(0.2, 0.5),
)
PATCHES = replace(PLAIN, exploration_erasing=PatchErasing(patch_size=4, mu=0.7))

updates = st.integers(0, 10**6)
seeds = st.integers(1, 2**32)
alphas = st.floats(0, 2, width=32)
group_counts = st.sampled_from([1, 2, 3, 4, 6, 12])


def inputs(seed=0):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=rng)
    return pixels, torch.randint(10, (BATCH,), generator=rng)


PIXELS, LABELS = inputs()


def mixed(recipe, *, alpha=0.8, progress=0.9, seed=1, update=0):
    return mixed_batch(
        PIXELS, LABELS, recipe, alpha=torch.tensor(alpha), progress=progress, seed=seed, update=update
    )


def drawn_maps(recipe, *, alpha, seed, update):
    """Weights of the pixels per group, drawn again from the streams."""
    groups = recipe.groups
    lam = draw_lambda(torch.tensor(alpha), (groups,), generator=stream(seed, "mixup", update))
    rng = stream(seed, "cutmix", update)
    cut = draw_lambda(recipe.cutmix_alpha, (groups,), generator=rng)
    boxes = cutmix_map(cut, height=SIZE, width=SIZE, generator=rng)
    switch = torch.rand(groups, generator=stream(seed, "switch", update)) < recipe.cutmix_probability
    return [boxes[g] if switch[g] else lam[g] * torch.ones(SIZE, SIZE) for g in range(groups)], switch


def with_noise(images, mask_BHW, *, generator):
    """The images with noise where the mask is, one number after the other: images, channels, rows, columns."""
    mask = mask_BHW[:, None].expand_as(images)
    noisy = images.clone()
    noisy[mask] = torch.randn(int(mask.sum()), generator=generator)
    return noisy


def partner_of(i, groups):
    size = BATCH // groups
    first = i // size * size
    return first + size - 1 - (i - first)


def test_pixels_are_normalised_by_imagenets_statistics():
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert normalise(pixels).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert normalise(pixels).dtype == torch.float32


@given(alphas, seeds, updates, group_counts, st.sampled_from(["paper", "area", "none"]))
def test_both_labels_pay_for_what_their_own_image_lost(alpha, seed, update, groups, decay):
    mu = 0.7
    recipe = replace(
        PATCHES, groups=groups, exploration_erasing=PatchErasing(patch_size=4, mu=mu, decay=decay)
    )
    found = mixed(recipe, alpha=alpha, seed=seed, update=update)

    maps, _ = drawn_maps(recipe, alpha=alpha, seed=seed, update=update)
    erased, gamma = [], []
    for number, group in enumerate(normalise(PIXELS).chunk(groups)):
        rng = stream(seed, "patch erasing", update, number)
        gamma.append(draw_rates(len(group), mu=mu, generator=rng))
        mask = patch_mask(group, gamma[-1], patch_size=4, generator=rng)
        erased += with_noise(group, mask, generator=stream(seed, "noise", update, number))
    gamma = torch.cat(gamma)
    kept = {"paper": 1 - gamma / mu, "area": 1 - gamma, "none": torch.ones(BATCH)}[decay]
    for i in range(BATCH):
        j, weights = partner_of(i, groups), maps[i // (BATCH // groups)]
        lam = weights.mean()
        expected = weights * erased[i] + (1 - weights) * erased[j]
        torch.testing.assert_close(found.images[i], expected, atol=1e-5, rtol=0)
        assert found.labels[i] == LABELS[i]
        assert found.partner_labels[i] == LABELS[j]
        torch.testing.assert_close(found.weights[i], lam * kept[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(found.partner_weights[i], (1 - lam) * kept[j], atol=1e-6, rtol=0)


@given(alphas, seeds, updates, group_counts)
def test_random_erasing_costs_no_label(alpha, seed, update, groups):
    recipe = replace(PLAIN, groups=groups, exploration_erasing=RandomErasing(probability=0.5))
    found = mixed(recipe, alpha=alpha, seed=seed, update=update)
    maps, _ = drawn_maps(recipe, alpha=alpha, seed=seed, update=update)
    erased = []
    for number, group in enumerate(normalise(PIXELS).chunk(groups)):
        rng = stream(seed, "random erasing", update, number)
        mask = rectangle_mask(group, generator=rng, **asdict(RandomErasing(probability=0.5)))
        erased += with_noise(group, mask, generator=stream(seed, "noise", update, number))
    for i in range(BATCH):
        j, weights = partner_of(i, groups), maps[i // (BATCH // groups)]
        expected = weights * erased[i] + (1 - weights) * erased[j]
        torch.testing.assert_close(found.images[i], expected, atol=1e-5, rtol=0)
    assert torch.equal(found.weights + found.partner_weights, torch.ones(BATCH))


@given(alphas, seeds, updates, st.sampled_from([0.0, 0.1]))
def test_the_baselines_loss_equals_timms_with_the_lambda_that_was_drawn(alpha, seed, update, smoothing):
    found = mixed(replace(PLAIN, groups=1), alpha=alpha, seed=seed, update=update)
    lam = found.weights[0].item()
    logits = torch.randn(BATCH, 10, generator=stream(seed, "logits"))
    target = mixup_target(LABELS, 10, lam, smoothing)
    loss = two_label_loss(logits, *found[1:], smoothing=smoothing).mean
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits, target), atol=1e-5, rtol=0)


@given(seeds, updates)
def test_alpha_0_leaves_mixups_share_of_the_groups_unmixed(seed, update):
    """They do not become CutMix, and CutMix stays what it is."""
    found = mixed(PLAIN, alpha=0.0, seed=seed, update=update)
    maps, switch = drawn_maps(PLAIN, alpha=0.0, seed=seed, update=update)
    images = normalise(PIXELS)
    for g, cut in enumerate(switch.tolist()):
        part = slice(4 * g, 4 * g + 4)
        if cut:
            assert found.weights[part].tolist() == pytest.approx([maps[g].mean().item()] * 4)
        else:
            assert torch.equal(found.images[part], images[part])
            assert (found.weights[part] == 1).all()
            assert (found.partner_weights[part] == 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.8])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_as_many_groups_are_cut_as_the_recipe_says_whatever_alpha_is(alpha, probability):
    """A pixel that is wholly the partner's tells CutMix from MixUp."""
    recipe = replace(PLAIN, groups=6, cutmix_probability=probability)
    flipped = normalise(PIXELS).unflatten(0, (6, 2)).flip(1)
    cut = 0
    for update in range(100):
        images = mixed(recipe, alpha=alpha, update=update).images.unflatten(0, (6, 2))
        cut += (images == flipped).all(2).flatten(1).any(1).sum().item()
    boxes_missed = 0.05  # at most: one in 64 is expected to have a lambda so near 1 that the box is empty
    error = 4 * (probability * (1 - probability) / 600) ** 0.5
    assert probability * (1 - boxes_missed) - error <= cut / 600 <= probability + error


def test_every_group_draws_its_own_lambda_and_kind_of_mixing():
    uncut = replace(PLAIN, cutmix_probability=0.0)
    weights = torch.stack([mixed(uncut, update=update).weights.view(3, 4) for update in range(20)])
    assert (weights == weights[:, :, :1]).all()  # one lambda within a group,
    assert len(weights[:, :, 0].unique()) == 60  # another in every group and update
    kinds = {tuple(drawn_maps(PLAIN, alpha=0.8, seed=1, update=update)[1].tolist()) for update in range(20)}
    assert len(kinds) > 2


@given(st.floats(0, 1))
def test_the_border_of_exploration_chooses_the_erasing(progress):
    """An erasing that takes all of every image shows in the pixels; one that costs labels in the weights."""
    before = PatchErasing(patch_size=4, mu=1.0, decay="none")
    after = PatchErasing(patch_size=4, mu=1.0, decay="paper")
    recipe = replace(PLAIN, erasing=before, exploration_erasing=after)
    found = mixed(recipe, progress=progress)
    total = found.weights + found.partner_weights
    assert (total < 1).all() == (progress >= 0.5)
    assert (total == 1).all() == (progress < 0.5)


@pytest.mark.parametrize(
    ("periods", "progress", "exploring"),
    [
        ((0.0, 0.0), 0.0, True),
        ((1.0, 1.0), 0.999, False),
        ((0.2, 0.5), 0.5, True),
        ((0.2, 0.5), 0.4999, False),
    ],
)
def test_exploration_begins_at_its_border(periods, progress, exploring):
    total = sum(mixed(replace(PATCHES, periods=Periods(*periods)), progress=progress)[3:])
    assert (total < 1).all() == exploring


@given(alphas, seeds, updates)
def test_a_batch_depends_on_seed_and_update_alone(alpha, seed, update):
    first = mixed(PATCHES, alpha=alpha, seed=seed, update=update)
    torch.rand(3)
    again = mixed(PATCHES, alpha=alpha, seed=seed, update=update)
    assert all(map(torch.equal, first, again))


@given(seeds, updates)
def test_another_update_or_seed_is_another_batch(seed, update):
    first = mixed(PATCHES, seed=seed, update=update)
    for other in (mixed(PATCHES, seed=seed, update=update + 1), mixed(PATCHES, seed=seed + 1, update=update)):
        assert not torch.equal(first.images, other.images)
        assert not torch.equal(first.weights, other.weights)


@given(seeds, updates)
def test_turning_erasing_on_changes_no_other_draw(seed, update):
    plain, erased = (
        mixed(replace(PLAIN, exploration_erasing=erasing), seed=seed, update=update)
        for erasing in (NoErasing(), PatchErasing(patch_size=4, decay="none"))
    )
    assert torch.equal(plain.weights, erased.weights)
    assert torch.equal(plain.partner_labels, erased.partner_labels)


@given(seeds, updates)
def test_the_images_and_labels_given_stay_as_they_are(seed, update):
    pixels, labels = inputs()
    mixed_batch(pixels, labels, PATCHES, alpha=torch.tensor(0.8), progress=0.9, seed=seed, update=update)
    expected = inputs()
    assert torch.equal(pixels, expected[0])
    assert torch.equal(labels, expected[1])


@pytest.mark.parametrize("size", [1, 5])
def test_odd_batches_and_non_square_images_work(size):
    pixels = PIXELS[:size, :, :8]
    found = mixed_batch(
        pixels,
        LABELS[:size],
        replace(PATCHES, batch=size, groups=1),
        alpha=torch.tensor(0.8),
        progress=0.9,
        seed=1,
        update=0,
    )
    assert found.images.shape == (size, 3, 8, 16)
    assert [len(part) for part in found] == [size] * 5


def test_a_bad_alpha_on_the_device_shows_in_the_batch_and_not_silently():
    recipe = replace(PLAIN, cutmix_probability=0.0)
    assert mixed(recipe, alpha=float("nan")).weights.isnan().all()


DIVISIONS = [  # groups, processes, images a piece
    *((3, 1, 4), (3, 3, None), (1, 2, None), (1, 3, None), (1, 2, 4), (3, 6, None), (3, 2, 2), (6, 2, None)),
    *((2, 2, 2), (12, 4, 1)),
]


@pytest.mark.parametrize(("groups", "processes", "at_most"), DIVISIONS)
@pytest.mark.parametrize("erasing", [PatchErasing(patch_size=4, mu=0.7), RandomErasing(probability=0.5)])
def test_the_pieces_of_a_batch_are_what_the_whole_is(groups, processes, at_most, erasing):
    """However it is divided, each sample gets the same pixels, labels and weights, to the bit."""
    recipe = replace(PLAIN, groups=groups, exploration_erasing=erasing)
    options = dict(alpha=torch.tensor(0.8), progress=0.9, seed=3, update=7)
    whole = mixed_batch(PIXELS, LABELS, recipe, **options)
    seen = []
    for piece in chain.from_iterable(pieces_of(recipe, processes=processes, at_most=at_most)):
        at = list(piece.positions)
        found = mixed_batch(PIXELS[at], LABELS[at], recipe, piece=piece, **options)
        for here, there in zip(found, whole, strict=True):
            assert torch.equal(here, there[at])
        seen += at
    assert sorted(seen) == list(range(BATCH))
