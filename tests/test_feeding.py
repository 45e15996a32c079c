"""Batches that the device augments: what is in them hangs on seed, update and position, not on how they are made."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
import threading

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
import torch

from dcvit import cache, datasets, feeding, loop, randaugment
from dcvit.augmentation import augmented, draw
from dcvit.crops import boxes
from dcvit.datasets import Pictures, pictures
from dcvit.decoding import DECODE, as_pixels, as_tensor, decoded
from dcvit.errors import DataError, EnvironmentProblem, Paused
from dcvit.feed import Feed
from dcvit.loading import epoch_order, training_batches
from dcvit.recipe import Augmentation
from dcvit.resampling import resize_into
from dcvit.sources import from_folder
from dcvit.stored import joined
from dcvit.training import fit
from tests.helpers import image_folder, threads_of_ours, tiny, without_times
from tests.waiting import never_waits

ON_DEVICE = Feed(augmentation="device")
AUGMENTATION = Augmentation(crop_scale=(0.3, 1.0), repeats=3)
# 12 images, batches of 6: two updates an epoch
RECIPE = tiny(resolution=16, batch=6, epochs=3, augmentation=AUGMENTATION)


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """12 JPEGs and PNGs of several sizes."""
    root = image_folder(tmp_path_factory.mktemp("images"), size=24)
    for number, path in enumerate(sorted((root / "train").rglob("*.png"))):
        image = Image.open(path).resize((20 + 3 * number, 44 - 2 * number))
        path.unlink() if number % 3 else None
        image.save(path.with_suffix(".jpg") if number % 3 else path, quality=95)
    return from_folder(root)


@pytest.fixture(params=["files", "held"])
def train(request, source, monkeypatch):
    return opened(source, request.param, monkeypatch)


def opened(source, how, monkeypatch, recipe=RECIPE):
    monkeypatch.setattr(datasets, "HELD_BYTES", 0 if how == "files" else 1 << 20)
    datasets._pictures.cache_clear()
    return pictures(source, "train", recipe)


def batches(train, recipe=RECIPE, *, feed=ON_DEVICE, **options):
    return list(training_batches(train, recipe, **{"seed": 1, "feed": feed, **options}))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(part, again)
        for pair in zip(one, other, strict=True)
        for part, again in zip(*pair, strict=True)
    )


# --- what is in them -------------------------------------------------------------------------


def test_batches_are_what_the_steps_one_by_one_give(train):
    """Order, crops, flips and RandAugment, put together again from their parts."""
    found = batches(train)
    assert len(found) == 6
    for update, (pixels, labels) in enumerate(found):
        images = epoch_order(12, RECIPE, seed=1, epoch=update // 2)[0][update % 2]
        draws = draw(RECIPE, seed=1, update=update)
        whole = [as_pixels(train.open(index)) for index in images.tolist()]
        sizes = np.array([image.shape[1:] for image in whole]).T
        crops = torch.empty(6, 3, 16, 16, dtype=torch.uint8)
        where = boxes(draws.crops, *sizes, ratio=RECIPE.augmentation.crop_ratio)
        for crop, image, box, flip in zip(crops, whole, where.tolist(), draws.flip_B, strict=True):
            resize_into(crop, image, box)
            if flip:
                crop.copy_(crop.flip(2))
        assert torch.equal(pixels, randaugment.apply(crops, draws.choices))
        assert torch.equal(labels, train.labels[images])
        assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_colours_side_by_side_are_the_same_pixels(train):
    """What a GPU gets, and turns there."""
    images = [0, 3, 3, 7, 11, 0]

    def cut(layout):
        job = feeding._job(
            lambda index: decoded(train, index),
            RECIPE,
            images,
            draw(RECIPE, seed=1, update=0),
            pinned=False,
            layout=layout,
            together=2,
            augmenting=False,
        )
        for part in job.parts:
            part()
        return job.result.pixels_BCSS

    planes, side_by_side = cut(torch.contiguous_format), cut(torch.channels_last)
    assert torch.equal(planes, side_by_side)
    assert planes.is_contiguous()
    assert side_by_side.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_cpu_threads_that_load_also_augment(source, monkeypatch, workers):
    """Who trains there has more to do than they."""
    seen = set()
    original = feeding.augmented

    def watched(pixels, draws):
        seen.add(threading.current_thread().name.startswith("dcvit"))
        return original(pixels, draws)

    monkeypatch.setattr(feeding, "augmented", watched)
    batches(opened(source, "files", monkeypatch), workers=workers)
    assert seen == {workers > 0}


def test_files_and_held_images_give_the_same_batches(source, monkeypatch):
    assert same(*(batches(opened(source, how, monkeypatch)) for how in ("files", "held")))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_batches(workers, train):
    assert same(batches(train), batches(train, workers=workers))
    assert not threads_of_ours()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", range(7))
def test_batches_can_begin_at_any_update(start, workers, train):
    assert same(batches(train, start=start, workers=workers), batches(train)[start:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("positions", [[0], [5, 0], [1, 2, 3], [4, 5, 0, 1, 2, 3]])
def test_a_process_has_its_positions_of_the_whole_batch(positions, workers, train):
    for (whole, labels), (part, its) in zip(
        batches(train), batches(train, positions=positions, workers=workers), strict=True
    ):
        assert torch.equal(part, whole[positions])
        assert torch.equal(its, labels[positions])


def test_seeds_and_epochs_differ(train):
    one, other = batches(train), batches(train, seed=2)
    pixels = [each for run in (one, other) for each, _ in run]
    assert len({each.numpy().tobytes() for each in pixels}) == 12


def test_global_generators_are_neither_used_nor_moved(train):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = batches(train, workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.manual_seed(2)
    assert same(batches(train), first)


def test_the_views_of_an_image_are_decoded_once_and_differ(source, monkeypatch):
    train = opened(source, "files", monkeypatch)
    seen = Counter()
    original = feeding.decoded
    monkeypatch.setattr(
        feeding, "decoded", lambda images, index: seen.update([index]) or original(images, index)
    )
    pixels, _ = next(training_batches(train, RECIPE, seed=1, feed=ON_DEVICE))
    images = epoch_order(12, RECIPE, seed=1, epoch=0)[0][0].tolist()
    assert seen == Counter(dict.fromkeys(images, 1))
    assert len(set(images)) == 2
    assert len(pixels.flatten(1).unique(dim=0)) == 6


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_exactly_the_drawn_images_are_flipped(update, flip):
    recipe = replace(RECIPE, augmentation=replace(AUGMENTATION, flip=flip, randaugment=None))
    pixels = torch.arange(6 * 3 * 4 * 5).view(6, 3, 4, 5).to(torch.uint8)
    draws = draw(recipe, seed=0, update=update)
    found = augmented(pixels.clone(), draws)
    for image, before, flipped in zip(found, pixels, draws.flip_B, strict=True):
        assert torch.equal(image, before.flip(2) if flipped else before)


def test_one_draw_does_not_move_another():
    """With or without RandAugment, flips and erasing, an image is cropped at the same place."""
    plain = replace(RECIPE, augmentation=replace(AUGMENTATION, flip=0.0, randaugment=None))
    one, other = (draw(recipe, seed=0, update=3) for recipe in (RECIPE, plain))
    assert all(map(np.array_equal, one.crops, other.crops))
    assert other.choices is None
    assert not other.flip_B.any()


def test_batches_are_nobody_elses_memory(train):
    """Whoever keeps a batch finds it unchanged when later ones have come."""
    results = training_batches(train, RECIPE, seed=1, feed=ON_DEVICE, workers=2)
    kept = [(pixels, pixels.clone()) for pixels, _ in results]
    assert all(torch.equal(*pair) for pair in kept)


# --- a cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_is_made_and_cropped_from(workers, source, tmp_path, monkeypatch):
    train = opened(source, "files", monkeypatch)
    feed = Feed(augmentation="device", cache=tmp_path / "cache")
    first = batches(train, feed=feed, workers=workers)
    (path,) = (tmp_path / "cache").glob("*-18.images")
    kept = cache.cached(path, train, 18)
    with monkeypatch.context() as patch:
        patch.setattr(feeding, "decoded", None)
        assert same(batches(train, feed=feed, workers=workers), first)
    images = Pictures(train.labels, lambda index: Image.fromarray(kept.image(index).permute(1, 2, 0).numpy()))
    assert same(batches(images), first)


def test_a_cache_is_made_before_the_first_batch_is_asked_for(train, tmp_path):
    training_batches(train, RECIPE, seed=1, feed=Feed(augmentation="device", cache=tmp_path / "cache"))
    assert (tmp_path / "cache").exists()


# --- what can't be ---------------------------------------------------------------------------


def test_colour_jitter_changes_colours_and_nothing_else(train):
    plain = replace(RECIPE, augmentation=Augmentation(randaugment=None))
    jittered = replace(RECIPE, augmentation=Augmentation(randaugment=None, color_jitter=0.4))
    pairs = list(zip(batches(train, plain), batches(train, jittered), strict=True))
    for (pixels, labels), (changed, same_labels) in pairs:
        assert torch.equal(labels, same_labels)
        assert not torch.equal(pixels, changed)
    with_both = replace(RECIPE, augmentation=Augmentation(color_jitter=0.4))  # which timm ignores then
    assert same(batches(train, with_both), batches(train, replace(RECIPE, augmentation=Augmentation())))


def test_a_randaugment_that_is_not_understood_is_refused_at_once(train):
    odd = replace(RECIPE, augmentation=Augmentation(randaugment="rand-x9"))
    with pytest.raises(ValueError, match="rand-x9"):
        training_batches(train, odd, seed=1, feed=ON_DEVICE)


def test_the_gpu_decodes_only_where_there_is_one(train, tmp_path):
    with pytest.raises(EnvironmentProblem, match="needs a CUDA device"):
        training_batches(train, RECIPE, seed=1, feed=Feed(augmentation="device", decoder="gpu"))
    for other in ({"cache": tmp_path / "cache"}, {"decoder": "gpu"}):
        feed = Feed(augmentation="pil", **other)
        with pytest.raises(ValueError, match="goes with --augmentation device"):
            training_batches(train, RECIPE, seed=1, feed=feed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_lost_is_named_when_its_batch_comes(workers, source, tmp_path, monkeypatch):
    root = image_folder(tmp_path / "images")
    train = opened(from_folder(root), "files", monkeypatch)
    order = epoch_order(12, RECIPE, seed=1, epoch=0)[0]
    lost = min(set(order[1].tolist()) - set(order[0].tolist()))
    path = root / from_folder(root).train[lost].path
    path.unlink()
    results = training_batches(train, RECIPE, seed=1, feed=ON_DEVICE, workers=workers)
    next(results)
    with pytest.raises(DataError, match=f"{path} can't be read any more"):
        next(results)
    assert not threads_of_ours()


def test_threads_end_when_the_batches_are_not_wanted_any_more(source, monkeypatch):
    train = opened(source, "files", monkeypatch)
    results = training_batches(train, RECIPE, seed=1, feed=ON_DEVICE, workers=3)
    next(results)
    assert len(threads_of_ours()) == 3
    results.close()
    assert not threads_of_ours()
    results = training_batches(train, RECIPE, seed=1, feed=ON_DEVICE, workers=3)
    list(islice(results, 2))
    del results
    assert not threads_of_ours()


def test_held_images_need_no_threads(source, monkeypatch):
    train = opened(source, "held", monkeypatch)
    results = training_batches(train, RECIPE, seed=1, feed=ON_DEVICE, workers=3)
    next(results)
    assert not threads_of_ours()


# --- what a GPU does, done by the CPU ---------------------------------------------------------


def test_crops_of_images_on_the_device_are_those_of_single_images(train):
    recipe = replace(RECIPE, augmentation=replace(AUGMENTATION, randaugment=None))
    held = joined([decoded(train, index) for index in range(12)], torch.device("cpu"))
    for update, (pixels, _) in enumerate(batches(train, recipe)):
        images = epoch_order(12, recipe, seed=1, epoch=update // 2)[0][update % 2].tolist()
        cut = feeding._held(held, recipe, images, draw(recipe, seed=1, update=update))
        difference = (augmented(cut.pixels_BCSS, cut.draws).int() - pixels.int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() <= 0.1


@pytest.mark.parametrize("refused", [set(), {1}, {1, 2, 4}])
def test_what_the_gpu_does_not_decode_is_decoded_here(refused, source, monkeypatch):
    """It refuses all of a list for one of them."""
    train = opened(source, "files", monkeypatch)
    bad = {train.encoded(index) for index in refused}
    asked = []

    def nvjpeg(files, device):
        asked.append(len(files))
        if bad & set(files):
            raise RuntimeError("nvJPEG: unsupported")
        return [DECODE(as_tensor(file), 3, False) for file in files]

    monkeypatch.setattr(feeding, "_nvjpeg", nvjpeg)
    found = feeding._by_gpu(train, range(12), torch.device("cpu"))
    assert all(torch.equal(image, decoded(train, index)) for index, image in enumerate(found))
    jpegs = sum(train.encoded(index)[:2] == b"\xff\xd8" for index in range(12))
    assert asked == [jpegs] + [1] * (jpegs if refused else 0)
    assert 0 < jpegs < 12


@pytest.mark.parametrize("threads", [0, 2, 8])
def test_threads_that_let_the_gpu_decode_have_a_stream_each_and_no_more(threads, source, monkeypatch):
    """Memory that was freed for a stream stays that stream's, so that one a batch would take many times as much."""
    train = opened(source, "files", monkeypatch)
    made, at_work, synchronised = [], set(), []

    class Stream:
        def __init__(self, device):
            made.append(self)

        def synchronize(self):
            synchronised.append(self)

    @contextmanager
    def used(stream):
        assert stream not in at_work
        at_work.add(stream)
        yield
        at_work.remove(stream)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", used)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(
        feeding, "_nvjpeg", lambda files, device: [DECODE(as_tensor(file), 3, False) for file in files]
    )
    tasks = [(list(range(first, first + 6)), draw(RECIPE, seed=1, update=first)) for first in range(6)]
    cuts = list(
        feeding._decoded_there(train, RECIPE, iter(tasks), threads=threads, device=torch.device("cpu"))
    )
    held = joined([decoded(train, index) for index in range(12)], torch.device("cpu"))
    assert len(made) == (2 if threads > 1 else 1)
    assert len(synchronised) == 6
    for (images, draws), cut in zip(tasks, cuts, strict=True):
        assert cut.images == images
        assert torch.equal(cut.pixels_BCSS, feeding._held(held, RECIPE, images, draws).pixels_BCSS)


@pytest.mark.parametrize("says", ["decode_jpegs_cuda: torchvision not compiled with nvJPEG support", None])
def test_a_gpu_that_decodes_nothing_is_said_so_before_the_first_batch(says, monkeypatch):
    """Else the host would decode all of it, image by image, and the record call it the GPU's work."""

    def nvjpeg(files, device):
        if says:
            raise RuntimeError(f"{says}\nmore of it")
        return [DECODE(as_tensor(file), 3, False) for file in files]

    monkeypatch.setattr(feeding, "_nvjpeg", nvjpeg)
    if says is None:
        feeding._require_nvjpeg(torch.device("cuda"))
        return
    with pytest.raises(EnvironmentProblem, match=f"needs a torchvision with nvJPEG: {says}. Use decoder cpu"):
        feeding._require_nvjpeg(torch.device("cuda"))


# --- whole runs ------------------------------------------------------------------------------


def run(source, out, *, feed=ON_DEVICE, **options):
    return without_times(fit(RECIPE, 0, source, out, torch.device("cpu"), feed=feed, **options))


@pytest.mark.parametrize("how", ["files", "held", "a cache"])
def test_a_run_is_the_same_for_any_number_of_threads_and_pauses(how, source, tmp_path, monkeypatch):
    opened(source, "held" if how == "held" else "files", monkeypatch)
    feed = Feed(augmentation="device", cache=tmp_path / "cache" if how == "a cache" else None)
    whole = run(source, tmp_path / "whole", feed=feed)
    assert run(source, tmp_path / "threads", feed=feed, workers=2) == whole
    monkeypatch.setattr(loop, "READ_EVERY", 1)
    pauses = 0
    while True:
        try:
            again = run(source, tmp_path / "pieces", feed=feed, workers=pauses % 3, deadline=0.0)
            break
        except Paused:
            pauses += 1
        assert not threads_of_ours()
    assert again == whole
    assert pauses >= 4
    assert not threads_of_ours()


def test_the_two_augmentations_are_two_runs_that_learn_the_same(source, tmp_path):
    records = [run(source, tmp_path / name, feed=Feed(augmentation=name)) for name in ("pil", "device")]
    assert [record.environment["augmentation"] for record in records] == ["pil", "device"]
    first, second = (record.evolution[0]["loss"] for record in records)
    assert first != second
    assert first == pytest.approx(second, rel=0.1)


def test_nothing_is_read_from_the_device(source, monkeypatch):
    """Flips, RandAugment and the crops of held images take from tensors only what stays there."""
    train = opened(source, "held", monkeypatch)
    images = joined([decoded(train, index) for index in range(12)], torch.device("cpu"))
    shuffled = [3, 3, 0, 11, 7, 5]
    draws = draw(RECIPE, seed=0, update=0)
    where = boxes(draws.crops, images.height_N[shuffled], images.width_N[shuffled], ratio=(0.75, 4 / 3))
    with never_waits():
        augmented(images.crops(shuffled, where, 16), draws)
