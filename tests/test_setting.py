"""Scale and images of a table, and the recipe that stands for each of the paper's there."""

from dataclasses import replace
from pathlib import Path

import pytest

from dcvit.baselines import DEIT_B, DEIT_S, deit_at_384
from dcvit.scale import SCALES, at_scale
from dcvit.setting import DEFAULT_SEEDS, IN_WORDS, OWN_IMAGES, Setting, of_nothing, of_record, of_source
from dcvit.sources import File, Source
from tests.helpers import record_of

FINE_TUNED = deit_at_384(DEIT_B)


def setting(scale="smoke", **changes):
    images, classes = OWN_IMAGES[scale]
    return Setting(**{**dict(scale=scale, images=images, classes=classes), **changes})


def folder_source(train=7, val=3):
    files = [File(f"{i}.png", 0, 1) for i in range(train + val)]
    return Source(
        "folder",
        "0123456789abcdef",
        ("blue", "green", "red"),
        root=Path("/somewhere/flowers"),
        train=tuple(files[:train]),
        val=tuple(files[train:]),
    )


# --- recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [DEIT_S, FINE_TUNED], ids=["from scratch", "fine-tuned"])
@pytest.mark.parametrize("scale", SCALES)
def test_on_its_own_images_a_scales_twin_is_the_recipe(scale, recipe):
    assert setting(scale).twin(recipe) == at_scale(recipe, scale)


def test_numbers_of_images_are_those_of_all_runs_also_of_those_before():
    twin = setting(train_images=600, test_images=100).twin(FINE_TUNED)
    assert (twin.train_images, twin.test_images) == (600, 100)
    assert (twin.pretrained.train_images, twin.pretrained.test_images) == (600, 100)
    assert setting().twin(FINE_TUNED).train_images == 384  # digits: some are enough


def test_on_a_folder_a_twin_has_its_classes_and_all_its_images():
    twin = setting(images="folder", classes=3).twin(FINE_TUNED)
    assert (twin.images, twin.classes, twin.train_images) == ("folder", 3, None)
    assert (twin.pretrained.images, twin.pretrained.classes) == ("folder", 3)


def test_twins_have_one_entry_for_each_recipe():
    assert setting().twins([DEIT_S, DEIT_B, DEIT_S]) == {
        DEIT_S: at_scale(DEIT_S, "smoke"),
        DEIT_B: at_scale(DEIT_B, "smoke"),
    }


# --- where a setting comes from ------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_without_images_a_scale_takes_its_own(scale):
    found = of_source(scale, None, train_images=None, test_images=None)
    assert (found.scale, found.images, found.classes) == (scale, *OWN_IMAGES[scale])
    assert (found.train_images, found.test_images, found.counts) == (None, None, None)
    assert DEFAULT_SEEDS[scale] >= 1


def test_images_at_hand_go_before_those_of_the_scale():
    found = of_source("small", folder_source(), train_images=5, test_images=None)
    assert found == Setting(
        scale="small", images="folder", classes=3, train_images=5, name="flowers", counts=(7, 3)
    )


@pytest.mark.parametrize("scale", SCALES)
def test_what_nobody_has_made_yet_would_be_made_on_the_scales_own_images(scale):
    found = of_nothing(scale)
    assert found.twin(DEIT_S) == at_scale(DEIT_S, scale)
    assert found.counts == ((1_281_167, 50_000) if scale == "paper" else None)


def test_a_record_may_have_been_made_with_the_numbers_of_images_that_it_names_or_without():
    """Its recipe does not say whether they were asked for, or are the scale's own."""
    recipe = replace(at_scale(DEIT_S, "smoke"), images="folder", classes=3, train_images=5, test_images=2)
    data = {"name": "folder", "fingerprint": "0123456789abcdef", "classes": 3}
    found = of_record("smoke", record_of(recipe, 0, 50.0, data=data))
    assert {(one.scale, one.images, one.classes) for one in found} == {("smoke", "folder", 3)}
    numbers = [(one.train_images, one.test_images) for one in found]
    assert numbers[0] == (None, None)  # comes first: what nobody asked for is the plainer guess
    assert sorted(map(str, numbers)) == sorted(map(str, [(None, None), (None, 2), (5, None), (5, 2)]))
    assert [one.twin(DEIT_S) == recipe for one in found] == [number == (5, 2) for number in numbers]


def test_a_record_that_names_no_numbers_was_made_without():
    (found,) = of_record("small", record_of(at_scale(DEIT_S, "small"), 0, 50.0))
    assert (found.train_images, found.test_images) == (None, None)


# --- in words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (setting(), "scikit-learn's handwritten digits"),
        (setting(counts=(1438, 359)), "scikit-learn's handwritten digits (1,438 training, 359 test)"),
        (
            setting(counts=(1438, 359), train_images=600),
            "scikit-learn's handwritten digits (600 training, 359 test)",
        ),
        (setting("small"), "Imagenette, 160 px"),
        (setting("small", test_images=9), "Imagenette, 160 px (9 test)"),
        (
            of_source("small", folder_source(), train_images=None, test_images=2),
            "folder flowers (7 training, 2 test)",
        ),
        (setting(images="folder"), "a folder of images"),
        (of_nothing("paper"), "ImageNet-1k (1,281,167 training, 50,000 test)"),
    ],
)
def test_in_words(found, words):
    assert found.in_words() == words


def test_only_a_folder_is_called_by_its_name():
    """Where Imagenette lies is nobody's business; a folder has no other name."""
    source = Source(**{**vars(folder_source()), "name": "imagenette"})
    assert "flowers" not in of_source("small", source, train_images=None, test_images=None).in_words()


def test_every_scales_own_images_have_words():
    assert {images for images, _ in OWN_IMAGES.values()} <= IN_WORDS.keys()
