"""What a run is said to take: arithmetic, corrected by what finished runs took."""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st
import pytest

from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, RESNET_50, SWIN_T
from dcvit.cost import (
    CORE_DECODES,
    CORE_DECODES_DEVICE,
    GPU_FLOPS,
    Took,
    calibrate,
    estimated_seconds,
    loading_seconds,
    multiply_adds,
)
from dcvit.recipe import DynamicAlpha, PatchErasing
from dcvit.runs import Run, took
from dcvit.scale import smoke
from tests.helpers import tiny

HERE = dict(images=1000, gpu=False, cores=2)
seconds = st.floats(0.1, 1e5)
recipes = st.sampled_from([smoke(recipe) for recipe in (DEIT_T, DEIT_S, DEIT_B, SWIN_T, RESNET_50)])


def made(recipe, seconds, *, images=1000, gpu=False, augmentation="pil"):
    return Took(recipe, images, gpu, seconds, augmentation)


def calibrated(recipe, finished, *, images=1000, gpu=False, augmentation="pil"):
    """With arithmetic as the base."""

    def base(recipe, images, augmentation):
        return estimated_seconds(recipe, images=images, gpu=gpu, cores=2, augmentation=augmentation)

    return calibrate(finished, base, gpu=gpu).seconds(recipe, images, augmentation)


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
    assert calibrated(DEIT_T, []) == estimated_seconds(DEIT_T, **HERE)


@given(st.lists(seconds, min_size=1, max_size=5))
def test_runs_alike_tell_by_their_median(times):
    recipe = smoke(DEIT_T)
    alike = [
        recipe,
        replace(recipe, alpha=DynamicAlpha()),
        replace(recipe, exploration_erasing=PatchErasing(patch_size=4)),
    ]
    finished = [made(alike[number % 3], time) for number, time in enumerate(times)]
    others = [made(smoke(DEIT_B), 7.0), made(recipe, 1e9, gpu=True), made(recipe, 1e9, images=999)]
    ordered = sorted(times)
    middle = (ordered[(len(times) - 1) // 2] + ordered[len(times) // 2]) / 2
    assert calibrated(recipe, finished + others) == pytest.approx(middle)


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
    assert calibrated(recipe, [made(other, measured)]) == pytest.approx(3 * estimated_seconds(recipe, **HERE))
    assert calibrated(recipe, [made(other, measured)]) != pytest.approx(measured)


@given(recipes, st.lists(st.tuples(recipes, st.integers(100, 5000)), min_size=1), st.floats(0.01, 100))
def test_where_arithmetic_is_wrong_by_one_factor_the_factor_is_found(recipe, others, factor):
    finished = [
        made(other, factor * estimated_seconds(other, images=images, gpu=False, cores=2), images=images)
        for other, images in others
    ]
    assert calibrated(recipe, finished) == pytest.approx(factor * estimated_seconds(recipe, **HERE))


@given(recipes, st.lists(st.builds(made, recipes, seconds), max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_the_finished_runs_does_not_matter(recipe, finished, random):
    shuffled = random.sample(finished, len(finished))
    assert calibrated(recipe, finished) == calibrated(recipe, shuffled)


def test_finished_runs_are_looked_at_once_however_many_others_are_asked_for():
    """Else a plan of a thousand runs in a full ledger takes half a minute."""
    asked = []

    def base(recipe, images, augmentation):
        asked.append(recipe)
        return 1.0

    known = calibrate([made(smoke(DEIT_B), 2.0)] * 7, base, gpu=False)
    assert len(asked) == 7
    assert {known.seconds(smoke(DEIT_T), 1000, "pil") for _ in range(5)} == {2.0}
    assert len(asked) == 7 + 5


@given(recipes, st.lists(st.builds(made, recipes, seconds, gpu=st.just(True)), max_size=4))
def test_runs_on_another_kind_of_device_say_nothing(recipe, elsewhere):
    assert calibrated(recipe, elsewhere) == estimated_seconds(recipe, **HERE)


@given(recipes, recipes, seconds)
def test_one_odd_run_among_three_does_not_matter(recipe, other, odd):
    assume(other != recipe)
    sound = 2 * estimated_seconds(other, **HERE)
    finished = [made(other, sound), made(other, odd), made(other, sound)]
    assert calibrated(recipe, finished) == pytest.approx(2 * estimated_seconds(recipe, **HERE))


class FakeRecord:
    def __init__(self, device, images, seconds, **environment):
        self.environment = {"device": device, **environment}
        self.data, self.seconds = {"train_images": images}, seconds


def test_records_are_read_for_images_device_seconds_and_augmentation():
    """Records from before there was a choice do not name it: they were made by pil."""
    recipe = tiny()
    records = {
        Run(recipe, 1): FakeRecord("cpu", 1000, 5.0),
        Run(recipe, 2): FakeRecord("cuda", 1000, 1.0, augmentation="device"),
        Run(recipe, 3): FakeRecord("cpu", 999, 9.0, augmentation="pil"),
    }
    assert took(records) == [
        Took(recipe, 1000, False, 5.0, "pil"),
        Took(recipe, 1000, True, 1.0, "device"),
        Took(recipe, 999, False, 9.0, "pil"),
    ]


# --- how images are loaded -----------------------------------------------------------------


@given(st.integers(1, 64), st.integers(1, 10**6), st.sampled_from([DEIT_T, SWIN_T]))
def test_a_gpu_waits_for_what_its_cores_load(cores, images, recipe):
    """Closed form: the slower of the two. DeiT shows an image three times, which the device's way decodes once."""
    samples = recipe.epochs * images
    computing = 6 * multiply_adds(recipe.backbone, 224) * samples / GPU_FLOPS
    views = recipe.augmentation.repeats
    for augmentation, loading in (
        ("pil", samples / (CORE_DECODES * cores)),
        ("device", samples / views / (CORE_DECODES_DEVICE * cores)),
        (None, samples / views / (CORE_DECODES_DEVICE * cores)),
    ):
        seconds = estimated_seconds(recipe, images=images, gpu=True, cores=cores, augmentation=augmentation)
        assert seconds == pytest.approx(max(computing, loading))


def test_a_measured_rate_of_loading_takes_the_place_of_the_constant():
    assert loading_seconds(SWIN_T, images=100, cores=2, augmentation="pil", a_core=50) == 300


def test_runs_fed_in_another_way_are_not_alike():
    recipe = smoke(DEIT_T)
    other = made(recipe, 7.0, gpu=True, augmentation="device")
    assert calibrated(recipe, [other], gpu=True, augmentation="device") == 7.0
    ratio = 7.0 / estimated_seconds(recipe, images=1000, gpu=True, cores=2, augmentation="device")
    assert calibrated(recipe, [other], gpu=True, augmentation="pil") == pytest.approx(
        ratio * estimated_seconds(recipe, images=1000, gpu=True, cores=2, augmentation="pil")
    )
