"""What a run is said to take: arithmetic, corrected by what finished runs took."""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st
import pytest

from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, RESNET_50, SWIN_T
from dcvit.cost import Took, calibrated_seconds, estimated_seconds, multiply_adds
from dcvit.recipe import DynamicAlpha, PatchErasing
from dcvit.runs import Run, estimated
from dcvit.scale import smoke
from tests.helpers import tiny

HERE = dict(images=1000, gpu=False, cores=2)
seconds = st.floats(0.1, 1e5)
recipes = st.sampled_from([smoke(recipe) for recipe in (DEIT_T, DEIT_S, DEIT_B, SWIN_T, RESNET_50)])


def took(recipe, seconds, *, images=1000, gpu=False):
    return Took(recipe, images, gpu, seconds)


@pytest.mark.parametrize(
    ("recipe", "giga"), [(DEIT_T, 1.26), (DEIT_S, 4.61), (DEIT_B, 17.6), (SWIN_T, 4.5), (RESNET_50, 4.1)]
)
def test_multiply_adds_are_the_published_ones(recipe, giga):
    """Of the forward pass at 224 px, as the papers of DeiT, Swin and ResNet print them."""
    assert multiply_adds(recipe.backbone, 224) == pytest.approx(giga * 1e9, rel=0.06)


@pytest.mark.parametrize("gpu", [False, True])
def test_twice_the_epochs_or_images_take_twice_the_time(gpu):
    once = estimated_seconds(DEIT_S, images=1000, gpu=gpu, cores=16)
    assert estimated_seconds(replace(DEIT_S, epochs=600), images=1000, gpu=gpu, cores=16) == (
        pytest.approx(2 * once)
    )
    assert estimated_seconds(DEIT_S, images=2000, gpu=gpu, cores=16) == pytest.approx(2 * once)


def test_without_finished_runs_arithmetic_is_all_there_is():
    assert calibrated_seconds(DEIT_T, [], **HERE) == estimated_seconds(DEIT_T, **HERE)


@given(st.lists(seconds, min_size=1, max_size=5))
def test_runs_alike_tell_by_their_median(times):
    recipe = smoke(DEIT_T)
    alike = [
        recipe,
        replace(recipe, alpha=DynamicAlpha()),
        replace(recipe, exploration_erasing=PatchErasing(patch_size=4)),
    ]
    finished = [took(alike[number % 3], time) for number, time in enumerate(times)]
    others = [took(smoke(DEIT_B), 7.0), took(recipe, 1e9, gpu=True), took(recipe, 1e9, images=999)]
    ordered = sorted(times)
    middle = (ordered[(len(times) - 1) // 2] + ordered[len(times) // 2]) / 2
    assert calibrated_seconds(recipe, finished + others, **HERE) == pytest.approx(middle)


@pytest.mark.parametrize(
    "change",
    [
        dict(epochs=24),
        dict(resolution=32),
        dict(batch=32),
        dict(backbone=smoke(DEIT_S).backbone),
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_of_another_size_are_not_alike(change):
    """Their ratio to arithmetic counts, and not their seconds."""
    recipe = smoke(DEIT_T)
    other = replace(recipe, **change)
    measured = 3 * estimated_seconds(other, **HERE)
    assert calibrated_seconds(recipe, [took(other, measured)], **HERE) == pytest.approx(
        3 * estimated_seconds(recipe, **HERE)
    )
    assert calibrated_seconds(recipe, [took(other, measured)], **HERE) != pytest.approx(measured)


@given(recipes, st.lists(st.tuples(recipes, st.integers(100, 5000)), min_size=1), st.floats(0.01, 100))
def test_where_arithmetic_is_wrong_by_one_factor_the_factor_is_found(recipe, others, factor):
    finished = [
        took(other, factor * estimated_seconds(other, images=images, gpu=False, cores=2), images=images)
        for other, images in others
    ]
    assert calibrated_seconds(recipe, finished, **HERE) == pytest.approx(
        factor * estimated_seconds(recipe, **HERE)
    )


@given(recipes, st.lists(st.builds(took, recipes, seconds), max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_the_finished_runs_does_not_matter(recipe, finished, random):
    shuffled = random.sample(finished, len(finished))
    assert calibrated_seconds(recipe, finished, **HERE) == calibrated_seconds(recipe, shuffled, **HERE)


@given(recipes, st.lists(st.builds(took, recipes, seconds, gpu=st.just(True)), max_size=4))
def test_runs_on_another_kind_of_device_say_nothing(recipe, elsewhere):
    assert calibrated_seconds(recipe, elsewhere, **HERE) == estimated_seconds(recipe, **HERE)


@given(recipes, recipes, seconds)
def test_one_odd_run_among_three_does_not_matter(recipe, other, odd):
    assume(other != recipe)
    sound = 2 * estimated_seconds(other, **HERE)
    finished = [took(other, sound), took(other, odd), took(other, sound)]
    assert calibrated_seconds(recipe, finished, **HERE) == pytest.approx(
        2 * estimated_seconds(recipe, **HERE)
    )


class FakeRecord:
    def __init__(self, device, images, seconds):
        self.environment, self.data, self.seconds = {"device": device}, {"train_images": images}, seconds


def test_records_are_read_for_images_device_and_seconds():
    recipe = tiny()
    records = {
        Run(recipe, 1): FakeRecord("cpu", 1000, 5.0),
        Run(recipe, 2): FakeRecord("cuda", 1000, 1.0),
        Run(recipe, 3): FakeRecord("cpu", 999, 9.0),
    }
    assert estimated(Run(recipe, 0), records, **HERE) == 5.0
    assert estimated(Run(recipe, 0), records, images=999, gpu=False, cores=2) == 9.0
    assert estimated(Run(recipe, 0), records, images=1000, gpu=True, cores=2) == 1.0
