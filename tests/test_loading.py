"""Which images come at which update, and that nothing but (seed, epoch, image, view) decides their pixels."""

from collections import Counter
from dataclasses import replace
from itertools import islice
import multiprocessing
import random
import subprocess
from time import monotonic, sleep

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from dcvit.augmentation import global_generators_kept
from dcvit.baselines import DEIT_T
from dcvit.datasets import Pictures, pictures
from dcvit.errors import DataError
from dcvit.feed import Feed
from dcvit.loading import epoch_order, evaluation_batches, training_batches
from dcvit.recipe import Augmentation
from dcvit.scale import at_scale
from dcvit.schedules import updates_per_epoch
from dcvit.sources import digits
from tests.helpers import environment, python

PIL = Feed(augmentation="pil")  # image by image; `test_feeding` has whole batches
seeds = st.integers(1, 2**32)
epochs = st.integers(0, 300)
SMOKE = replace(at_scale(DEIT_T, "smoke"), batch=16, epochs=2, train_images=50, test_images=20)


@st.composite
def plans(draw, repeats=None):
    """(number of images, recipe): at least one full batch."""
    groups = draw(st.integers(1, 5))
    batch = groups * draw(st.integers(1, 8))
    repeats = draw(st.integers(1, 4)) if repeats is None else repeats
    images = draw(st.integers(batch, 200) | st.integers(256, 600))
    recipe = replace(DEIT_T, batch=batch, groups=groups, augmentation=Augmentation(repeats=repeats))
    return images, recipe


# --- the order -----------------------------------------------------------------------------


@given(plans(repeats=1), seeds, epochs)
def test_an_epoch_shows_no_image_twice_and_leaves_out_less_than_a_batch(plan, seed, epoch):
    images, recipe = plan
    order, views = epoch_order(images, recipe, seed=seed, epoch=epoch)
    shown = order.flatten().tolist()
    assert len(set(shown)) == len(shown) > images - recipe.batch
    assert set(shown) <= set(range(images))
    assert (views == 0).all()


@given(st.integers(1, 20), st.integers(1, 10), seeds)
def test_an_epoch_of_full_batches_is_a_permutation(batch, updates, seed):
    recipe = replace(DEIT_T, batch=batch, groups=1, augmentation=Augmentation())
    order, _ = epoch_order(batch * updates, recipe, seed=seed, epoch=0)
    assert sorted(order.flatten().tolist()) == list(range(batch * updates))


@given(plans(), seeds, epochs)
def test_the_order_has_one_row_of_full_size_an_update(plan, seed, epoch):
    images, recipe = plan
    order, views = epoch_order(images, recipe, seed=seed, epoch=epoch)
    assert order.shape == views.shape == (updates_per_epoch(images, recipe), recipe.batch)
    assert order.dtype == views.dtype == torch.int64


@given(plans(), seeds, epochs)
def test_an_image_comes_in_as_many_views_as_it_is_repeated_at_most_each_once(plan, seed, epoch):
    images, recipe = plan
    order, views = epoch_order(images, recipe, seed=seed, epoch=epoch)
    pairs = list(zip(order.flatten().tolist(), views.flatten().tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= view < recipe.augmentation.repeats for _, view in pairs)
    # all but the last image shown, and what no full batch holds, come in all their views
    incomplete = sum(n < recipe.augmentation.repeats for n in Counter(image for image, _ in pairs).values())
    assert incomplete <= 1


@given(plans(repeats=3), seeds, epochs)
def test_the_views_of_an_image_never_meet_in_a_group(plan, seed, epoch):
    images, recipe = plan
    order, _ = epoch_order(images, recipe, seed=seed, epoch=epoch)
    if recipe.groups >= 3:
        for group in order.view(-1, recipe.batch // recipe.groups).tolist():
            assert len(set(group)) == len(group)


@given(plans(), seeds, epochs)
def test_samples_are_dealt_to_the_groups_as_to_so_many_processes(plan, seed, epoch):
    """Process g of G takes every G-th sample, from its g-th on, and cuts that into its batches."""
    images, recipe = plan
    groups, size = recipe.groups, recipe.batch // recipe.groups
    alone = replace(recipe, batch=groups, groups=1)
    samples = epoch_order(images, alone, seed=seed, epoch=epoch)[0].flatten()
    order = epoch_order(images, recipe, seed=seed, epoch=epoch)[0]
    for g in range(groups):
        expected = samples[g::groups][: len(order) * size].view(-1, size)
        assert torch.equal(order[:, g * size : (g + 1) * size], expected)


@given(plans(), seeds, epochs)
def test_an_order_can_be_made_again_without_the_ones_before(plan, seed, epoch):
    images, recipe = plan
    first = epoch_order(images, recipe, seed=seed, epoch=epoch)
    epoch_order(images, recipe, seed=seed, epoch=epoch + 1)
    assert all(map(torch.equal, first, epoch_order(images, recipe, seed=seed, epoch=epoch)))


def test_every_epoch_and_seed_has_another_order():
    orders = {
        tuple(epoch_order(50, SMOKE, seed=seed, epoch=epoch)[0].flatten().tolist())
        for seed in (1, 2)
        for epoch in range(5)
    }
    assert len(orders) == 10


def test_with_three_views_over_three_epochs_most_images_are_seen():
    """The shuffle differs by epoch: it is not the same third again and again."""
    recipe = replace(DEIT_T, batch=64)
    seen = [set(epoch_order(768, recipe, seed=1, epoch=epoch)[0].flatten().tolist()) for epoch in range(3)]
    assert [len(part) for part in seen] == [256] * 3
    assert len(set.union(*seen)) > 256 * 1.9  # 1 - (2/3)^3 of 768 is 541


# --- how many updates ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "batch", "repeats", "expected"),
    [
        (1_281_167, 1024, 3, 1251),
        (1_281_167, 1024, 1, 1251),
        (1_281_167, 512, 3, 2502),
        (9469, 256, 3, 36),
        (511, 256, 3, 1),
        (255, 100, 3, 2),  # too few to round down to a multiple of 256
        (300, 100, 3, 2),
        (300, 100, 1, 3),
    ],
)
def test_updates_of_an_epoch(images, batch, repeats, expected):
    recipe = replace(DEIT_T, batch=batch, groups=4, augmentation=Augmentation(repeats=repeats))
    assert updates_per_epoch(images, recipe) == expected


@given(plans())
def test_an_epoch_never_needs_more_samples_than_there_are_images(plan):
    images, recipe = plan
    assert 1 <= updates_per_epoch(images, recipe) * recipe.batch <= images


def test_a_batch_larger_than_the_set_is_refused_with_both_numbers():
    with pytest.raises(DataError, match="a batch of 1024 is larger than the 100 training images"):
        updates_per_epoch(100, DEIT_T)


# --- the pixels ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train():
    return pictures(digits(), "train", SMOKE)


def batches(train, recipe=SMOKE, *, seed=1, workers=0):
    with global_generators_kept():
        return list(training_batches(train, recipe, seed=seed, workers=workers, feed=PIL))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(part, again)
        for pair in zip(one, other, strict=True)
        for part, again in zip(*pair, strict=True)
    )


def test_batches_are_uint8_images_with_their_labels(train):
    found = batches(train)
    assert len(found) == SMOKE.epochs * updates_per_epoch(50, SMOKE)
    order = [row for epoch in (0, 1) for row in epoch_order(50, SMOKE, seed=1, epoch=epoch)[0]]
    for (images, labels), row in zip(found, order, strict=True):
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape == (16, 3, 16, 16)
        assert torch.equal(labels, train.labels[row])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")  # on a machine of one core
def test_batches_are_the_same_for_any_number_of_workers(train):
    assert same(batches(train), batches(train, workers=2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_batches_can_begin_at_any_update(start, workers, train):
    with global_generators_kept():
        found = list(training_batches(train, SMOKE, seed=1, start=start, workers=workers, feed=PIL))
    assert len(found) == SMOKE.epochs * updates_per_epoch(50, SMOKE) - start
    assert same(found, batches(train)[start:])


@pytest.mark.parametrize("start", [1, 3, 4])
def test_the_batches_before_the_beginning_are_not_made(start, train):
    opened = []

    def open_image(index):
        opened.append(index)
        return train.open(index)

    watched = Pictures(train.labels, open_image)
    with global_generators_kept():
        next(training_batches(watched, SMOKE, seed=1, start=start, feed=PIL))
    epoch, update = divmod(start, 3)
    assert opened == epoch_order(50, SMOKE, seed=1, epoch=epoch)[0][update].tolist()


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_loading_processes_end_with_their_batches_whoever_keeps_what_they_raised(train):
    def unreadable(index):
        raise DataError(f"image {index}")

    before = set(multiprocessing.active_children())
    found = training_batches(Pictures(train.labels, unreadable), SMOKE, seed=1, workers=2, feed=PIL)
    with pytest.raises(DataError) as raised, global_generators_kept():
        next(found)
    assert set(multiprocessing.active_children()) == before
    assert "image" in str(raised.value)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_loading_processes_end_when_no_more_batches_are_wanted(train):
    before = set(multiprocessing.active_children())
    found = training_batches(train, SMOKE, seed=1, workers=2, feed=PIL)
    with global_generators_kept():
        next(found)
    assert len(set(multiprocessing.active_children()) - before) == 2
    found.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_a_loading_process_that_hangs_is_ended_too(train, monkeypatch, workers):
    """Its file system may have gone."""
    first = set(epoch_order(50, SMOKE, seed=1, epoch=0)[0][0].tolist())
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)

    def open_image(index):
        if index not in first:
            sleep(1000)
        return train.open(index)

    before = set(multiprocessing.active_children())
    found = training_batches(Pictures(train.labels, open_image), SMOKE, seed=1, workers=workers, feed=PIL)
    with global_generators_kept():
        next(found)
    begun = monotonic()
    found.close()
    assert monotonic() - begun < 30
    assert set(multiprocessing.active_children()) == before


ABANDONED = """
from dcvit.loading import training_batches
from tests.test_loading import PIL, SMOKE, digits, pictures
batches = training_batches(pictures(digits(), "train", SMOKE), SMOKE, seed=1, workers=1, feed=PIL)
next(batches)
{}
"""


@pytest.mark.parametrize("end", ["keep = [batches]; keep.append(keep)", "1 / 0"])
def test_loading_processes_keep_no_process_alive(end):
    """They ignore the signal by which Python ends its children."""
    child = subprocess.run(
        python("-c", ABANDONED.format(end)), env=environment(), capture_output=True, timeout=60, check=False
    )
    assert child.returncode == (1 if end == "1 / 0" else 0), child.stderr


def test_batches_depend_on_the_seed_and_not_on_the_global_generators(train):
    first = batches(train)
    with global_generators_kept():
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        again = batches(train)
    assert same(first, again)
    assert not same(first, batches(train, seed=2))


def test_an_image_looks_the_same_in_whatever_batch_it_comes(train):
    """One update at a time, or all of them in one batch: the views of an epoch are those of their names."""
    small, large = replace(SMOKE, epochs=1), replace(SMOKE, epochs=1, batch=48, groups=SMOKE.groups)

    def views(recipe):
        order = epoch_order(50, recipe, seed=1, epoch=0)[0].flatten().tolist()
        images = torch.cat([images for images, _ in batches(train, recipe)])
        return dict(zip(order, images, strict=True))

    one, other = views(small), views(large)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_image_gets_another_view_in_another_epoch(train):
    found = batches(train)
    per_epoch = updates_per_epoch(50, SMOKE)
    views = []
    for epoch in (0, 1):
        order = epoch_order(50, SMOKE, seed=1, epoch=epoch)[0].flatten().tolist()
        images = torch.cat([images for images, _ in found[epoch * per_epoch :][:per_epoch]])
        views.append(dict(zip(order, images, strict=True)))
    shared = views[0].keys() & views[1].keys()
    differing = sum(not torch.equal(views[0][name], views[1][name]) for name in shared)
    assert differing > 0.9 * len(shared)


def test_repeated_views_of_an_image_differ(train):
    recipe = replace(SMOKE, epochs=1, groups=1, batch=48, augmentation=replace(SMOKE.augmentation, repeats=3))
    ((images, labels),) = batches(train, recipe)
    views = images.view(16, 3, *images.shape[1:])  # in one group, views come in a row
    assert torch.equal(labels.view(16, 3), labels[::3, None].expand(16, 3))
    distinct = sum(len(view.flatten(1).unique(dim=0)) for view in views)
    assert distinct > 0.9 * 48


def test_test_images_come_in_order_all_of_them_and_always_the_same():
    test = pictures(digits(), "val", SMOKE)
    first, again = (list(evaluation_batches(test, SMOKE)) for _ in range(2))
    assert [len(labels) for _, labels in first] == [16, 4]
    assert torch.equal(torch.cat([labels for _, labels in first]), test.labels)
    assert same(first, again)


# --- global generators ---------------------------------------------------------------------


def global_states():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def equal_states(one, other):
    same_numpy = all(np.array_equal(part, again) for part, again in zip(one[1], other[1], strict=True))
    return one[0] == other[0] and same_numpy and torch.equal(one[2], other[2])


def test_global_generators_are_left_as_they_were(train):
    before = global_states()
    with global_generators_kept():
        list(islice(training_batches(train, SMOKE, seed=1, feed=PIL), 2))
        assert not equal_states(before, global_states())
    assert equal_states(before, global_states())


def test_global_generators_are_left_as_they_were_after_an_error_too():
    before = global_states()

    def fails():
        random.random()
        torch.rand(1)
        raise KeyError

    with pytest.raises(KeyError), global_generators_kept():
        fails()
    assert equal_states(before, global_states())
