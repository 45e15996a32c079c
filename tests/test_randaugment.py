"""RandAugment on a batch: each operation against timm's with Pillow, and the draws against timm's distribution.

Images are named as (height, width); C = 3 channels.
"""

import random

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image, ImageOps
import pytest
from scipy import stats
from timm.data.auto_augment import rand_augment_transform
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dcvit import augmentation, lookup, randaugment, warping
from dcvit.randaugment import IMAGENET_FILL, Choices, Operation, Settings, apply, draw, settings
from dcvit.rng import host_stream

DEIT = "rand-m9-mstd0.5-inc1"
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
OPERATION = {
    "AutoContrast": Operation.AUTO_CONTRAST,
    "Equalize": Operation.EQUALIZE,
    "Invert": Operation.INVERT,
    "Rotate": Operation.ROTATE,
    "Posterize": Operation.POSTERIZE,
    "Solarize": Operation.SOLARIZE,
    "SolarizeAdd": Operation.SOLARIZE_ADD,
    "Color": Operation.COLOR,
    "Contrast": Operation.CONTRAST,
    "Brightness": Operation.BRIGHTNESS,
    "Sharpness": Operation.SHARPNESS,
    "ShearX": Operation.SHEAR_X,
    "ShearY": Operation.SHEAR_Y,
    "TranslateXRel": Operation.TRANSLATE_X,
    "TranslateYRel": Operation.TRANSLATE_Y,
}
GEOMETRIC = [name for name, operation in OPERATION.items() if operation >= Operation.SHEAR_X]
EXACT = [name for name in OPERATION if name not in GEOMETRIC]
LEVELS = (0.0, 0.3, 2.7, 5.0, 8.37, 9.5, 10.0)
SIZES = ((64, 64), (33, 50), (224, 9), (7, 5), (3, 3), (2, 2), (1, 3), (1, 1))


def timms(text=DEIT, interpolation="bicubic"):
    """timm's RandAugment with the settings that create_transform gives it."""
    hparams = dict(translate_const=100, img_mean=IMAGENET_FILL, interpolation=RESAMPLING[interpolation])
    whole = rand_augment_transform(text, hparams)
    for operation in whole.ops:
        if operation.aug_fn is augmentation.timm_posterize:
            operation.aug_fn = augmentation.posterize  # Pillow 13 refuses 0 bits
    return whole


def name_of(timm_operation):
    return timm_operation.name.removesuffix("Increasing")


def images(height, width, rng):
    """Noise over all values, noise over few, a smooth picture, a flat one, one with a hole in its histogram."""
    coarse = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    yield rng.integers(30, 90, (height, width, 3), dtype=np.uint8)
    yield np.array(smooth)
    yield np.full((height, width, 3), (7, 100, 200), dtype=np.uint8)
    yield rng.choice(np.array([0, 1, 250, 255], dtype=np.uint8), (height, width, 3))


def tensor(arrays):
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def one(operation, strength, count=1):
    """The same single operation for `count` images."""
    return Choices(np.full((1, count), operation, np.int8), np.full((1, count), float(strength)))


def differences(name, size, *, interpolation="bicubic", text=DEIT):
    """|ours - Pillow's| (levels * images, H, W, C) over all levels and kinds of images."""
    (timm_operation,) = [each for each in timms(text, interpolation).ops if name_of(each) == name]
    height, width = size
    many = list(images(height, width, host_stream(0, "test images", height, width)))
    scale = {"TranslateXRel": width, "TranslateYRel": height}.get(name, 1)
    found = []
    for level in LEVELS:
        arguments = timm_operation.level_fn(level, timm_operation.hparams) if timm_operation.level_fn else ()
        theirs = np.stack(
            [
                timm_operation.aug_fn(Image.fromarray(each), *arguments, **timm_operation.kwargs)
                for each in many
            ]
        )
        strength = arguments[0] * scale if arguments else 0.0
        ours = apply(tensor(many), one(OPERATION[name], strength, len(many)), interpolation=interpolation)
        found.append(np.abs(ours.permute(0, 2, 3, 1).numpy().astype(int) - theirs))
    return np.concatenate(found)


# --- each operation against Pillow -----------------------------------------------------------


@pytest.mark.parametrize("size", [*SIZES, (130, 131)], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_colours_are_pillows_to_the_bit(name, size):
    assert differences(name, size).max() == 0


@pytest.mark.parametrize("size", [*SIZES, (224, 224)], ids=str)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometry_is_pillows_but_for_the_last_bit_of_few_pixels(name, size):
    """Pillow computes in float64, we in float32: both cut off, so a value near a whole number may land beside it."""
    found = differences(name, size)
    assert found.max() <= 1
    assert found.mean() <= 0.005


@pytest.mark.parametrize("name", GEOMETRIC)
def test_bilinear_resampling_is_pillows_too(name):
    for size in ((64, 48), (5, 7), (1, 2)):
        found = differences(name, size, interpolation="bilinear")
        assert found.max() <= 1
        assert found.mean() <= 0.05


@pytest.mark.parametrize("name", ["Posterize", "Solarize", "Brightness", "Contrast", "Color", "Sharpness"])
def test_operations_that_do_not_increase_with_the_level_are_pillows_too(name):
    assert differences(name, (20, 30), text="rand-m9-mstd0.5").max() == 0


@given(
    st.sampled_from(["bicubic", "bilinear"]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(-180, 180),
    st.integers(0, 9),
)
def test_any_angle_is_pillows_rotation(interpolation, height, width, degrees, seed):
    array = host_stream(seed, "rotated").integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = Image.fromarray(array).transform(
        (width, height),
        Image.Transform.AFFINE,
        tuple(randaugment._rotations(np.array([degrees]), height, width)[0]),
        resample=RESAMPLING[interpolation],
        fillcolor=(1, 2, 3),
    )
    ours = apply(tensor([array]), one(Operation.ROTATE, degrees), fill=(1, 2, 3), interpolation=interpolation)
    assert np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs)).max() <= 1


@given(st.sampled_from("xy"), st.floats(-2, 2), st.floats(-30, 30), st.integers(0, 9))
def test_a_shear_is_the_affine_map_that_it_stands_for(along, slope, offset, seed):
    pixels = tensor([host_stream(seed, "sheared").integers(0, 256, (9, 14, 3), dtype=np.uint8)])
    matrix = [1, slope, offset, 0, 1, 0] if along == "x" else [1, 0, 0, slope, 1, offset]
    fill = torch.tensor(IMAGENET_FILL, dtype=torch.uint8)
    same = dict(fill_C=fill, interpolation="bicubic")
    slope, offset = torch.tensor([[slope], [offset]], dtype=torch.float64)
    short = warping.sheared(pixels, slope, offset, along=along, **same)
    long = warping.warped(pixels, torch.tensor([matrix], dtype=torch.float64), **same)
    # An edge that lies within rounding of a pixel's centre may count that pixel in or out.
    assert ((short.int() - long.int()).abs() > 1).float().mean() <= 1 / 9


# --- the batch --------------------------------------------------------------------------------


def batch(count, height=9, width=12, seed=0):
    return torch.from_numpy(
        host_stream(seed, "batch").integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    )


@given(st.integers(0, 2**32), st.lists(st.integers(0, 19), max_size=20), st.sampled_from([1, 400, 10**9]))
@hypothesis_settings(max_examples=40)
def test_an_image_does_not_depend_on_its_company(seed, positions, piece):
    pixels = batch(20)
    choices = draw(settings("rand-m9-mstd0.5-inc1-n3-p0.9"), 20, (9, 12), host_stream(seed, "company"))
    whole = apply(pixels, choices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randaugment, "PIECE", piece)
        part = apply(pixels[positions], choices[positions])
    assert torch.equal(part, whole[positions])


def test_layers_are_carried_out_one_after_the_other():
    pixels = batch(4, 24, 24)
    first = one(Operation.ROTATE, 20, 4)
    second = one(Operation.EQUALIZE, 0, 4)
    both = Choices(*(np.concatenate(pair) for pair in zip(_arrays(first), _arrays(second), strict=True)))
    assert torch.equal(apply(pixels, both), apply(apply(pixels, first), second))
    assert not torch.equal(apply(pixels, both), apply(apply(pixels, second), first))


def _arrays(choices):
    return choices.operation, choices.strength


@pytest.mark.parametrize("operation", Operation)
def test_the_batch_itself_is_left_alone(operation):
    pixels = batch(3, 24, 24)
    before = pixels.clone()
    changed = apply(pixels, one(operation, 3.0, 3))
    assert torch.equal(pixels, before)
    assert changed.data_ptr() != pixels.data_ptr()
    assert changed.dtype == torch.uint8
    assert torch.equal(changed, pixels) == (operation == Operation.NOTHING)


def test_images_for_which_nothing_was_drawn_stay_as_they_are():
    pixels = batch(200)
    choices = draw(settings(DEIT), 200, (9, 12), host_stream(3, "some"))
    idle = (choices.operation == Operation.NOTHING).all(axis=0)
    assert 20 < idle.sum() < 80  # a quarter of 200
    changed = apply(pixels, choices)
    assert torch.equal(changed[idle], pixels[idle])
    assert not torch.equal(changed[~idle], pixels[~idle])


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_few_or_no_images_works(count):
    choices = draw(settings(DEIT), 8, 12, host_stream(0, "few"))[np.arange(count)]
    assert len(choices) == count
    assert apply(batch(count), choices).shape == (count, 3, 9, 12)


def test_images_in_another_memory_layout_give_the_same():
    pixels = batch(30)
    choices = draw(settings("rand-m9-inc1-p1"), 30, (9, 12), host_stream(0, "layout"))
    strided = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply(strided, choices), apply(pixels, choices))


def test_nothing_is_read_back_from_the_device():
    """The meta device has shapes and no values, so whatever asked for one would fail."""
    choices = draw(settings("rand-m9-mstd0.5-inc1-p1"), 100, (9, 12), host_stream(0, "meta"))
    assert len(np.unique(choices.operation)) == 15
    changed = apply(batch(100).to("meta"), choices)
    assert (changed.shape, changed.device.type) == ((100, 3, 9, 12), "meta")


class Forbidden(TorchDispatchMode):
    """Fails on every operation whose result's size or value the host must wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique"}
        for index in args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else ():
            assert index is None or index.dtype != torch.bool
        return func(*args, **(kwargs or {}))


def test_nothing_is_waited_for_on_the_cpu_either():
    choices = draw(settings("rand-m9-mstd0.5-inc1-p1"), 100, (9, 12), host_stream(0, "meta"))
    with Forbidden():
        apply(batch(100), choices)
    with Forbidden(), pytest.raises(AssertionError):
        batch(1).sum().item()
    with Forbidden(), pytest.raises(AssertionError):
        batch(1)[batch(1) > 3]


@pytest.mark.parametrize(
    "pixels",
    [batch(2).float(), batch(2)[0], batch(2)[:, :1], batch(3)],
    ids=["float", "one image", "grey", "other number"],
)
def test_what_does_not_fit_is_refused(pixels):
    with pytest.raises(ValueError, match=r"uint8 pixels|choices for 2 images"):
        apply(pixels, one(Operation.INVERT, 0, 2))


# --- the tables -------------------------------------------------------------------------------


def test_a_channel_that_is_mostly_its_largest_value_is_not_equalized():
    """Its step is 0: fewer than 255 pixels are below the largest value."""
    pixels = torch.full((1, 3, 30, 30), 200, dtype=torch.uint8)
    pixels[:, :, 0, :5] = torch.arange(5, dtype=torch.uint8)
    assert torch.equal(lookup.equalize_tables(pixels)[0, 0], torch.arange(256, dtype=torch.uint8))


def test_pairs_of_extremes_are_stretched_as_by_pillow():
    """Another order of the same arithmetic, or a reciprocal, is off by one for some of these."""
    low, high = (each[::11] for each in np.triu_indices(256))
    array = np.stack([low, high, (low + high) // 2], axis=1).astype(np.uint8)[:, None, :, None].repeat(3, 3)
    ours = apply(tensor(array), one(Operation.AUTO_CONTRAST, 0, len(array))).permute(0, 2, 3, 1).numpy()
    theirs = np.stack([ImageOps.autocontrast(Image.fromarray(each)) for each in array])
    assert np.array_equal(ours, theirs)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand", Settings()),
        (DEIT, Settings(level=9, spread=0.5, increasing=True)),
        ("rand-p1-n3-inc0-mstd0-m15", Settings(level=15, layers=3, chance=1.0)),
        ("rand-m7-mstd101", Settings(level=7, spread=float("inf"))),
    ],
)
def test_settings_are_read_as_timm_reads_them(text, expected):
    assert settings(text) == expected
    theirs = timms(text)
    operation = theirs.ops[-1]
    assert (expected.level, expected.spread, expected.layers, expected.chance) == (
        *(operation.magnitude, operation.magnitude_std, theirs.num_layers, operation.prob),
    )
    assert any(each.name.endswith("Increasing") for each in theirs.ops) == expected.increasing


@pytest.mark.parametrize(
    "text",
    [
        *("", "rand-", "augmix-m9", "rand-m", "rand-m9.5", "rand-m9-m8", "rand-mmax10", "rand-tweights"),
        *("rand-n0", "rand-p1.5", "rand-m-9", "original", "rand-m9 ", "Rand-m9", "rand-mstd.5"),
    ],
)
def test_other_settings_are_refused_with_what_is_understood(text):
    with pytest.raises(ValueError, match=r"not understood; it must be `rand` and, .*m9 .*mstd0\.5 .*inc1"):
        settings(text)


# --- draws ------------------------------------------------------------------------------------

DRAWS = 30_000


def drawn(text=DEIT, count=DRAWS, resolution=(90, 200)):
    return draw(settings(text), count, resolution, host_stream(1, "draws"))


def test_every_operation_is_equally_frequent_and_half_of_them_are_left_out():
    counts = np.bincount(drawn().operation.ravel(), minlength=len(Operation))
    shares = np.array([0.5, *[0.5 / 15] * 15])
    assert stats.chisquare(counts, shares * 2 * DRAWS).pvalue > 1e-3


def test_layers_and_neighbours_are_independent():
    operation = drawn().operation.astype(int)
    for first, second in ((operation[0], operation[1]), (operation[0, :-1:2], operation[0, 1::2])):
        table = np.bincount(16 * first + second, minlength=256).reshape(16, 16)
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_the_operations_are_those_that_timm_carries_out(monkeypatch):
    """timm's RandAugment with every operation replaced by a note of its name and argument."""
    theirs, ours = _timm_draws(monkeypatch, DEIT, 20_000), drawn(count=10_000)
    counts = [[len(theirs[name]), (ours.operation == OPERATION[name]).sum()] for name in OPERATION]
    assert stats.chi2_contingency(np.array(counts)).pvalue > 1e-3


@pytest.mark.parametrize("text", [DEIT, "rand-m5-mstd2", "rand-m7-mstd101-inc1"])
def test_the_strengths_are_distributed_as_timms(monkeypatch, text):
    """Two samples each: Kolmogorov and Smirnov's test where they are continuous, chi-square where whole."""
    theirs, ours = _timm_draws(monkeypatch, text, 20_000), drawn(text)
    scale = {"TranslateXRel": 200, "TranslateYRel": 90}
    for name, operation in OPERATION.items():
        strengths = ours.strength[ours.operation == operation]
        expected = np.array(theirs[name], dtype=float) * scale.get(name, 1)
        assert len(strengths) > 800 < len(expected)
        if name in ("AutoContrast", "Equalize", "Invert"):
            assert set(strengths) == {0.0}
        elif name in ("Posterize", "Solarize", "SolarizeAdd"):
            assert set(strengths) | set(expected) <= set(range(257))
            values, places = np.unique(np.concatenate([strengths, expected]), return_inverse=True)
            table = [np.bincount(part, minlength=len(values)) for part in np.split(places, [len(strengths)])]
            often = np.sum(table, axis=0) >= 10
            table = np.array([[*row[often], row[~often].sum()] for row in table])
            assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-4, name
        else:
            assert stats.ks_2samp(strengths, expected).pvalue > 1e-4, name


def _timm_draws(monkeypatch, text, count):
    """Operation -> the arguments that timm calls it with, over `count` images."""
    whole, notes = timms(text), {name: [] for name in OPERATION}
    for operation in whole.ops:
        note = notes[name_of(operation)]
        monkeypatch.setattr(
            operation, "aug_fn", lambda image, *level, note=note, **_: note.append(level[0] if level else 0)
        )
    with augmentation.global_generators_kept():
        augmentation.seed_transform(0, "timm's draws", text)
        for _ in range(count):
            whole(None)
    return notes


def test_strengths_without_spread_are_timms_own():
    """One level only, so what timm's functions say of it, with either sign."""
    ours = drawn("rand-m7-mstd0-inc1-p1", count=3000)
    scale = {"TranslateXRel": 200, "TranslateYRel": 90}
    for each in timms("rand-m7-mstd0-inc1").ops:
        name = name_of(each)
        found = set(ours.strength[ours.operation == OPERATION[name]])
        random.seed(0)
        expected = (
            {each.level_fn(7, each.hparams)[0] * scale.get(name, 1) for _ in range(40)}
            if each.level_fn
            else {0}
        )
        assert sorted(found) == pytest.approx(sorted(expected), rel=1e-15), name


def test_draws_are_reproducible_and_some_can_be_taken():
    whole, again = drawn(count=50), drawn(count=50)
    assert np.array_equal(whole.operation, again.operation)
    assert np.array_equal(whole.strength, again.strength)
    some = whole[[7, 3, 3]]
    assert np.array_equal(some.operation, whole.operation[:, [7, 3, 3]])
    assert np.array_equal(whole[10:20].strength, whole.strength[:, 10:20])
    assert (len(whole), len(some), len(whole[10:20])) == (50, 3, 10)


def test_a_side_is_enough_for_square_images():
    square, sides = drawn(count=500, resolution=60), drawn(count=500, resolution=(60, 60))
    assert np.array_equal(square.strength, sides.strength)


# --- all of it --------------------------------------------------------------------------------


def test_a_batch_comes_out_with_timms_brightness_and_spread():
    """Means and standard deviations of 1500 images after the whole of either, from the same pictures."""
    rng = host_stream(2, "whole")
    arrays = [next(iter(list(images(24, 24, rng))[2:])) for _ in range(1500)]
    whole = timms()
    with augmentation.global_generators_kept():
        augmentation.seed_transform(0, "timm's pictures")
        theirs = tensor([np.asarray(whole(Image.fromarray(array))) for array in arrays])
    ours = apply(tensor(arrays), draw(settings(DEIT), 1500, 24, host_stream(2, "whole draws")))
    for measure in (_means, _spreads):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3
        assert stats.ks_2samp(measure(ours), measure(tensor(arrays))).pvalue < 1e-3  # the test can tell


def _means(pixels):
    return pixels.double().mean(dim=(1, 2, 3)).numpy()


def _spreads(pixels):
    return pixels.double().flatten(1).std(dim=1).numpy()
