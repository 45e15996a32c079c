"""WebDataset shards read by index."""

from io import BytesIO
import tarfile

import numpy as np
from PIL import Image
import pytest
import torch

from dcvit import sources
from dcvit.baselines import DEIT_T
from dcvit.datasets import pictures
from dcvit.errors import DataError
from dcvit.scale import on_images, smoke


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def png(grey):
    buffer = BytesIO()
    Image.fromarray(np.full((5, 7), grey, dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Two training shards and one for testing; image i is grey 10 i, of class i mod 2."""
    for name, numbers in (("set-train-0", (0, 1)), ("set-train-1", (2, 3)), ("set-val-0", (4, 5))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number in numbers:
                add(tar, f"some.folder/{number:04}.png", png(10 * number))
                add(tar, f"some.folder/{number:04}.cls", str(number % 2).encode())
                add(tar, f"some.folder/{number:04}.json", b"{}")
    return tmp_path


def test_a_shard_is_read_as_a_list_of_images_and_labels(shards):
    source = sources.find(f"wds/{shards}", "smoke")
    recipe = on_images(smoke(DEIT_T), images="folder", classes=2, train_images=None, test_images=None)
    for _ in range(2):  # the second time from the remembered index
        train = pictures(source, "train", recipe)
        assert torch.equal(train.labels, torch.tensor([0, 1, 0, 1]))
        assert [train.open(i).getpixel((0, 0))[0] for i in range(4)] == [0, 10, 20, 30]
        assert sources.find(f"wds/{shards}", "smoke").fingerprint == source.fingerprint
    sources.check_readable(source, (*source.train, *source.val))


def test_a_damaged_image_in_a_shard_is_named(shards):
    with tarfile.open(shards / "set-train-2.tar", "w") as tar:
        add(tar, "9.png", png(9)[:40])
        add(tar, "9.cls", b"1")
    source = sources.find(f"wds/{shards}", "smoke")
    with pytest.raises(DataError, match=r"1 of 7 images can't be read.*\n.*set-train-2\.tar at byte 512"):
        sources.check_readable(source, (*source.train, *source.val))


def test_a_sample_without_its_label_is_named(shards):
    with tarfile.open(shards / "set-val-1.tar", "w") as tar:
        add(tar, "9.png", png(9))
    with pytest.raises(DataError, match=r"set-val-1\.tar: sample '9' lacks its image or its \.cls"):
        sources.find(f"wds/{shards}", "smoke")


def test_a_folder_without_shards_says_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match=r"no \*train\*\.tar"):
        sources.find(f"wds/{tmp_path}", "smoke")


def test_a_file_that_is_no_tar_is_named(shards):
    (shards / "set-train-7.tar").write_bytes(b"not a tar file" * 99)
    with pytest.raises(DataError, match=r"set-train-7\.tar can't be read as a shard"):
        sources.find(f"wds/{shards}", "smoke")


def test_paper_scale_wants_a_thousand_classes(shards):
    with pytest.raises(DataError, match="has 2 classes"):
        sources.find(f"wds/{shards}", "paper")
