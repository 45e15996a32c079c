"""`dcvit check-data`: what it finds in folders whose contents are known, and in broken ones."""

from collections import Counter
from itertools import pairwise
import json
import tarfile

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from dcvit import checking
from dcvit.checking import as_text, examine, histogram
from dcvit.cli import main
from dcvit.errors import DATA_OR_ENVIRONMENT, OK
from dcvit.sources import from_folder
from dcvit.wnids import imagenet_wnids
from tests.helpers import files_below, image_folder


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


def with_image(path, size):
    Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8)).save(path)


def test_it_counts_what_the_folder_was_made_of(images):
    with_image(images / "train" / "red" / "wide.png", (300, 70))
    with_image(images / "train" / "red" / "tall.png", (225, 1000))
    facts = examine(from_folder(images))
    train, val = facts.splits["train"], facts.splits["val"]
    assert (facts.classes, facts.wnids, facts.imagenet_wnids, facts.unreadable) == (3, 0, 0, 0)
    assert (train.images, train.fewest, train.most) == (14, 4, 6)
    assert (val.images, val.fewest, val.most, val.median_size) == (6, 2, 2, (12, 12))
    assert {name: count for name, count in train.shorter_sides.items() if count} == {
        "below 64": 12,
        "64 to 127": 1,
        "224 to 383": 1,
    }
    assert train.bytes == sum(path.stat().st_size for path in (images / "train").rglob("*.png"))
    assert facts.fingerprint == from_folder(images).fingerprint


@given(st.lists(st.integers(1, 2000)))
def test_every_side_is_counted_in_the_one_range_that_holds_it(sides):
    found = histogram(sides)
    assert sum(found.values()) == len(sides)
    borders = [0, 64, 128, 224, 384, 512, 10**9]
    ranges = pairwise(borders)
    expected = [sum(low <= side < high for side in sides) for low, high in ranges]
    assert list(found.values()) == expected


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_unreadable_file_is_named_with_its_reason_and_the_code_is_3(images, split, capsys):
    bad = images / split / "red" / "0.png"
    bad.write_text("not an image")
    cut = images / split / "blue" / "1.jpg"
    with_image(cut, (64, 64))
    cut.write_bytes(cut.read_bytes()[:-20])
    assert main(["check-data", str(images)]) == DATA_OR_ENVIRONMENT
    printed = capsys.readouterr().out
    assert "unreadable    2 (decoded to the end)" in printed
    assert f"\n  {bad}: cannot identify image file" in printed
    assert f"\n  {cut}: image file is truncated" in printed
    assert sum(examine(from_folder(images)).splits["train"].shorter_sides.values()) == 12 - (split == "train")


def test_heads_alone_miss_a_cut_and_say_so(images, capsys):
    cut = images / "val" / "blue" / "1.jpg"
    with_image(cut, (64, 64))
    cut.write_bytes(cut.read_bytes()[:-20])
    assert main(["check-data", str(images), "--heads"]) == OK
    assert "unreadable    0 (only their heads were read" in capsys.readouterr().out


def test_twenty_damaged_files_are_named_and_the_rest_counted(tmp_path, capsys):
    images = image_folder(tmp_path / "images", train=9)
    for path in (images / "train").rglob("*.png"):
        path.write_text("")
    assert main(["check-data", str(images)]) == DATA_OR_ENVIRONMENT
    printed = capsys.readouterr().out
    assert printed.count("cannot identify image file") == 20
    assert "  ... and 7 more" in printed


def test_json_has_every_damaged_file(images, capsys):
    for path in (images / "train").rglob("*.png"):
        path.write_text("")
    assert main(["check-data", str(images), "--json"]) == DATA_OR_ENVIRONMENT
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["splits"]["train"]["unreadable"]) == 12
    assert (facts["splits"]["train"]["median_size"], facts["is_imagenet1k"]) == (None, False)
    assert facts["splits"]["val"]["images"] == 6


# --- is it ImageNet-1k? --------------------------------------------------------------------


@pytest.fixture
def small_imagenet(tmp_path, monkeypatch):
    """A folder of four of its classes, and an ImageNet-1k that is no larger."""
    wnids = imagenet_wnids()[:4]
    monkeypatch.setattr(checking, "imagenet_wnids", lambda: wnids)
    monkeypatch.setattr(checking, "IMAGENET_CLASSES", 4)
    monkeypatch.setattr(checking, "IMAGENET_TRAIN", 12)
    monkeypatch.setattr(checking, "IMAGENET_TEST", 200)
    return image_folder(tmp_path / "imagenet", train=3, val=50, classes=wnids, size=8)


def test_a_folder_of_all_its_classes_and_counts_is_imagenet(small_imagenet):
    facts = examine(from_folder(small_imagenet))
    assert (facts.differs, facts.wnids, facts.imagenet_wnids) == ((), 4, 4)
    assert as_text(facts).splitlines()[-1].startswith("ImageNet-1k by its classes and counts")


def test_one_image_less_is_not(small_imagenet):
    next((small_imagenet / "train").rglob("*.png")).unlink()
    assert examine(from_folder(small_imagenet)).differs == ("11 images in train instead of 12",)


def test_a_class_of_another_name_is_not(small_imagenet):
    name = imagenet_wnids()[0]
    for split in ("train", "val"):
        (small_imagenet / split / name).rename(small_imagenet / split / "n00000000")
    assert examine(from_folder(small_imagenet)).differs == (
        "1 classes that are none of its wnids (n00000000)",
    )


def test_test_images_sorted_into_the_wrong_classes_are_noticed(small_imagenet):
    one, other = (small_imagenet / "val" / name for name in imagenet_wnids()[:2])
    (one / "0.png").rename(other / "wrong.png")
    assert examine(from_folder(small_imagenet)).differs == ("49 to 51 images a class in val instead of 50",)


def test_the_real_counts_are_the_known_ones(images):
    differs = examine(from_folder(images)).differs
    assert differs == (
        "3 classes instead of 1,000",
        "12 images in train instead of 1,281,167",
        "6 images in val instead of 50,000",
    )


def test_timms_list_has_a_thousand_wnids_in_order():
    wnids = imagenet_wnids()
    assert (len(set(wnids)), wnids[0], wnids[999]) == (1000, "n01440764", "n15075141")
    assert list(wnids) == sorted(wnids)


# --- what is no folder of images -----------------------------------------------------------


def test_shards_are_read_too(images, tmp_path, capsys):
    (tmp_path / "shards").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "shards" / f"{split}-0.tar", "w") as tar:
            for number, name in enumerate(sorted(path.name for path in (images / split).iterdir())):
                tar.add(images / split / name / "0.png", f"{number}.png")
                label = tmp_path / "label"
                label.write_text(str(number))
                tar.add(label, f"{number}.cls")
    assert main(["check-data", f"wds/{tmp_path / 'shards'}"]) == OK
    assert "3, 0 of them named by wnids" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "words"), [("nowhere", "is not a folder"), ("hfds/x/y", "wds/FOLDER is needed")]
)
def test_what_is_no_folder_is_refused(place, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check-data", place]) == DATA_OR_ENVIRONMENT
    assert words in capsys.readouterr().err


def test_nothing_is_written(images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = Counter(files_below(tmp_path))
    main(["check-data", str(images)])
    assert Counter(files_below(tmp_path)) == before
