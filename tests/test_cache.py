"""The cache file: what is in it, when it is taken, and what becomes of one that was not finished or is damaged."""

import errno
import multiprocessing
import os
import shutil

import numpy as np
from PIL import Image
import pytest
import torch

from dcvit import cache, datasets
from dcvit.cache import cached, fitted, side_for
from dcvit.datasets import pictures
from dcvit.decoding import decoded
from dcvit.errors import DataError, EnvironmentProblem, Paused
from dcvit.resampling import resized
from dcvit.sources import from_folder
from tests.helpers import image_folder, tiny

SIDE = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 images of several sizes, most of them larger than `SIDE`."""
    root = image_folder(tmp_path_factory.mktemp("images"), size=20)
    for number, path in enumerate(sorted((root / "train").rglob("*.png"))):
        Image.open(path).resize((7 + 3 * number, 8 + 2 * (number % 4))).save(path)
    return root


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache, "EACH", 2)


@pytest.fixture
def train(folder):
    return pictures(from_folder(folder), "train", tiny())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "images"


def equal(one, other):
    return torch.equal(one.pixels_P3, other.pixels_P3) and all(map(np.array_equal, one[1:], other[1:]))


def counting(monkeypatch):
    """The images that are decoded from now on."""
    opened = []
    monkeypatch.setattr(
        cache, "decoded", lambda images, index: opened.append(index) or decoded(images, index)
    )
    return opened


@pytest.mark.parametrize("threads", [0, 3])
def test_images_are_resized_once_and_never_enlarged(threads, train, path):
    stored = cached(path, train, SIDE, threads=threads)
    assert len(stored.start_N) == 12
    for index in range(12):
        image = decoded(train, index)
        height, width = fitted(*image.shape[1:], SIDE)
        assert torch.equal(stored.image(index), resized(image, height, width))
        assert min(height, width) == min(SIDE, *image.shape[1:])
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["images", "images.lock"]


def test_it_is_made_once(train, path, monkeypatch, capsys):
    first = cached(path, train, SIDE)
    assert "making the cache" in (said := capsys.readouterr().err)
    assert f"{path.stat().st_size / 1e6:.1f} MB" in said
    opened = counting(monkeypatch)
    assert equal(cached(path, train, SIDE, threads=2), first)
    assert opened == []
    assert capsys.readouterr().err == ""


def test_any_number_of_threads_makes_the_same_file(train, path, tmp_path):
    for threads in (0, 1, 4):
        cached(tmp_path / str(threads), train, SIDE, threads=threads)
    assert len({(tmp_path / str(threads)).read_bytes() for threads in (0, 1, 4)}) == 1


def test_sides_and_sizes():
    assert [side_for(resolution) for resolution in (224, 384, 32, 16)] == [256, 438, 36, 18]
    assert [
        fitted(*size, 256) for size in [(256, 300), (300, 256), (512, 512), (100, 900), (257, 10_000)]
    ] == [*((256, 300), (300, 256), (256, 256), (100, 900), (256, 9961))]


# --- what is not taken -----------------------------------------------------------------------


def test_a_cache_of_other_images_is_refused_and_left_alone(train, path, folder, tmp_path):
    cached(path, train, SIDE)
    before = path.read_bytes()
    other = shutil.copytree(folder, tmp_path / "other")
    victim = next((other / "train" / "red").iterdir())
    victim.rename(victim.with_name("new.png"))
    source = from_folder(folder)
    for images, side, why in (
        (pictures(from_folder(other), "train", tiny()), SIDE, "other images"),
        (pictures(source, "train", tiny(train_images=11)), SIDE, "is of other images than these"),
        (pictures(source, "val", tiny()), SIDE, "is of other images than these"),
        (train, SIDE + 1, f"has side = {SIDE}, and {SIDE + 1} is needed"),
    ):
        with pytest.raises(DataError, match=why) as caught:
            cached(path, images, side)
        assert str(path) in str(caught.value)
        assert "remove this file" in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"x", b"dcvitimg", b"dcvitimg" + b"\xff" * 90, b"PNG" * 100, bytes(5000)]
)
def test_a_file_that_is_no_cache_is_refused_and_left_alone(content, train, path):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is not a cache|{path} is damaged"):
        cached(path, train, SIDE)
    assert path.read_bytes() == content


def test_every_flipped_bit_is_found(train, path):
    """In the header, the sizes, the sums, the digest, and all pixels."""
    cached(path, train, SIDE)
    content = path.read_bytes()
    for place in np.unique(np.linspace(0, len(content) - 1, 300).astype(int)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=str(path)):
            cached(path, train, SIDE)
    path.write_bytes(content)
    cached(path, train, SIDE)


@pytest.mark.parametrize("change", [-1, 1, -1000, 500])
def test_a_file_of_another_length_is_refused(change, train, path):
    cached(path, train, SIDE)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(DataError, match=f"{path} has .* bytes instead of"):
        cached(path, train, SIDE)


def test_pixels_are_checked_once_a_file(train, path, monkeypatch):
    cached(path, train, SIDE)
    looked = []
    original = os.pread

    def pread(file, count, at):
        looked.append(at)
        return original(file, count, at)

    monkeypatch.setattr(os, "pread", pread)

    def reads():
        looked.clear()
        cached(path, train, SIDE)
        return len(looked)

    short = reads()
    os.utime(path, (1, 1))  # another file, as far as one can tell
    assert reads() == short + 6  # chunks
    assert reads() == short


def test_nothing_is_written_to_the_file_through_the_images(train, path):
    stored = cached(path, train, SIDE)
    before = path.read_bytes()
    stored.pixels_P3.zero_()
    assert path.read_bytes() == before
    assert cached(path, train, SIDE).pixels_P3.any()


# --- what is not finished --------------------------------------------------------------------


class Stop(BaseException):
    """A kill, as far as a process can tell of itself."""


def stopped_after(images, count):
    """The set, of which the process dies when it opens one image more."""
    left = [count]

    def open_image(index):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return images.open(index)

    # sizes come from the open images, too: 12 of them
    return datasets.Pictures(images.labels, open_image, None, None, False, images.identity)


@pytest.mark.parametrize("count", range(0, 25, 3))
def test_a_kill_costs_no_finished_chunk(count, train, path, tmp_path, monkeypatch):
    expected = cached(tmp_path / "whole", train, SIDE)
    if count < 24:
        with pytest.raises(Stop):
            cached(path, stopped_after(train, count), SIDE)
        assert not path.exists()
    opened = counting(monkeypatch)
    assert equal(cached(path, train, SIDE), expected)
    finished = max(0, count - 12) // 2 * 2 if count < 24 else 0
    assert len(opened) == 12 - finished
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_making_stops_between_chunks_when_it_is_told(train, path, tmp_path):
    asked = iter(["", "", "SIGTERM"])
    with pytest.raises(Paused, match=r"SIGTERM, while .*images was made: the same call goes on"):
        cached(path, train, SIDE, stopped=lambda: next(asked))
    assert not path.exists()
    assert equal(cached(path, train, SIDE), cached(tmp_path / "whole", train, SIDE))
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_folder_of_caches_has_a_file_for_each_set_subset_and_side(train, folder, tmp_path):
    fewer = pictures(from_folder(folder), "train", tiny(train_images=11))
    found = {cache.file_in(tmp_path, images, side) for images in (train, fewer) for side in (SIDE, SIDE + 1)}
    assert len(found) == 4
    assert cache.file_in(tmp_path, train, SIDE).parent == tmp_path


def test_chunks_that_did_not_get_to_the_disk_are_made_again(train, path, tmp_path, monkeypatch):
    expected = cached(tmp_path / "whole", train, SIDE)
    with pytest.raises(Stop):
        cached(path, stopped_after(train, 12 + 8), SIDE)
    part = path.with_name("images.part")
    content = bytearray(part.read_bytes())
    content[-expected.pixels_P3.numel()] ^= 1  # the first pixel
    part.write_bytes(content)
    opened = counting(monkeypatch)
    assert equal(cached(path, train, SIDE), expected)
    assert sorted(opened) == [0, 1, 8, 9, 10, 11]


def test_an_unfinished_file_of_other_images_is_refused_and_left_alone(train, path, folder):
    with pytest.raises(Stop):
        cached(path, stopped_after(train, 20), SIDE)
    part = path.with_name("images.part")
    before = part.read_bytes()
    with pytest.raises(DataError, match=f"{part} is of other images"):
        cached(path, pictures(from_folder(folder), "train", tiny(train_images=11)), SIDE)
    assert part.read_bytes() == before
    assert not path.exists()


def test_an_image_that_can_not_be_read_is_named(folder, path, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)
    source = from_folder(shutil.copytree(folder, tmp_path / "other"))
    victim = source.root / source.train[5].path
    content = victim.read_bytes()
    train = pictures(source, "train", tiny())
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{victim} can't be read any more"):
        cached(path, train, SIDE, threads=2)
    victim.write_bytes(content)
    assert len(cached(path, train, SIDE).start_N) == 12


def test_a_full_disk_is_told_before_anything_is_written(train, path, monkeypatch):
    usage = shutil.disk_usage(path.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage._replace(free=100))
    with pytest.raises(EnvironmentProblem, match=rf"{path} takes .* MB, and 0.0 MB are free there"):
        cached(path, train, SIDE)
    assert not path.exists()


def test_a_place_that_can_not_be_written_is_named(train, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match=r"can't be made or read \(.*\): give another folder"):
        cached(tmp_path / "file" / "cache", train, SIDE)


def test_a_disk_that_fills_while_a_cache_is_made_is_told_as_that(train, path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        EnvironmentProblem, match=r"\(No space left on device\): make room there, or give another"
    ):
        cached(path, train, SIDE)


def test_a_whole_cache_in_a_folder_that_can_not_be_written_is_read(train, path, monkeypatch):
    expected = cached(path, train, SIDE)
    path.with_name("images.lock").unlink()
    access = os.access
    monkeypatch.setattr(os, "access", lambda where, mode: mode != os.W_OK and access(where, mode))
    assert equal(cached(path, train, SIDE), expected)
    assert [entry.name for entry in path.parent.iterdir()] == ["images"]
    with pytest.raises(DataError, match="has side = 9, and 10 is needed"):
        cached(path, train, SIDE + 1)


def test_images_without_a_name_are_not_cached(train, path):
    with pytest.raises(ValueError, match="without a name"):
        cached(path, datasets.Pictures(train.labels, train.open), SIDE)


# --- several processes -----------------------------------------------------------------------


def test_of_several_processes_one_makes_it(train, path, tmp_path, monkeypatch):
    log = tmp_path / "log"

    def noted(images, index):
        with open(log, "a") as lines:
            lines.write(f"{index}\n")
        return decoded(images, index)

    monkeypatch.setattr(cache, "decoded", noted)
    together = multiprocessing.get_context("fork")
    sums, begin = together.SimpleQueue(), together.Barrier(3)

    def make():
        begin.wait()
        sums.put(int(cached(path, train, SIDE).pixels_P3.int().sum()))

    children = [together.Process(target=make) for _ in range(3)]
    for child in children:
        child.start()
    answers = {sums.get() for _ in children}
    for child in children:
        child.join()
    assert answers == {int(cached(path, train, SIDE).pixels_P3.int().sum())}
    assert sorted(map(int, log.read_text().split())) == list(range(12))
