"""PatchErasing with label decay (Eq. 7), and RandomErasing against timm's."""

from fractions import Fraction
import random

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats
from timm.data.random_erasing import RandomErasing as TimmErasing
import torch

from dcvit.erasing import (
    draw_rates,
    erase_patches,
    erase_rectangles,
    label_weights,
    patch_mask,
    rectangle_mask,
)
from dcvit.rng import stream

seeds = st.integers(0, 2**32)
unit = st.floats(0, 1)
thousandths = st.integers(0, 1000).map(lambda k: Fraction(k, 1000))  # exact: identities below hold to the bit
positive_thousandths = st.integers(1, 1000).map(lambda k: Fraction(k, 1000))
sizes = st.sampled_from([(16, 16, 4), (16, 24, 4), (24, 8, 8), (6, 6, 1), (8, 8, 8), (28, 28, 2)])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])

# --- label decay ---------------------------------------------------------------------------


@st.composite
def mixes(draw):
    """(lam, gamma, partner's gamma, mu), exact fractions with both gammas in [0, mu] and mu > 0."""
    mu = draw(positive_thousandths)
    return draw(thousandths), mu * draw(thousandths), mu * draw(thousandths), mu


@given(mixes())
def test_weights_are_equation_7_as_printed(mix):
    lam, gamma, gamma_partner, mu = mix
    eps, eps_partner = lam / mu * gamma, (1 - lam) / mu * gamma_partner
    assert label_weights(lam, gamma, gamma_partner, mu) == (lam - eps, 1 - lam - eps_partner)


@given(mixes(), st.sampled_from(["paper", "area", "none"]))
def test_weights_stay_within_what_mixup_gives(mix, decay):
    lam = mix[0]
    weight, partner_weight = label_weights(*mix, decay=decay)
    assert 0 <= weight <= lam
    assert 0 <= partner_weight <= 1 - lam


@given(mixes())
def test_the_sum_is_1_only_where_no_image_that_has_weight_lost_anything(mix):
    lam, gamma, gamma_partner, _ = mix
    total = sum(label_weights(*mix))
    untouched = (gamma == 0 or lam == 0) and (gamma_partner == 0 or lam == 1)
    assert total <= 1
    assert (total == 1) == untouched


@given(mixes(), thousandths, thousandths)
def test_weights_are_affine_in_gamma(mix, other, t):
    lam, gamma, gamma_partner, mu = mix
    other *= mu
    between = label_weights(lam, t * gamma + (1 - t) * other, gamma_partner, mu)[0]
    ends = [label_weights(lam, end, gamma_partner, mu)[0] for end in (gamma, other)]
    assert between == t * ends[0] + (1 - t) * ends[1]
    between = label_weights(lam, gamma, t * gamma_partner + (1 - t) * other, mu)[1]
    ends = [label_weights(lam, gamma, end, mu)[1] for end in (gamma_partner, other)]
    assert between == t * ends[0] + (1 - t) * ends[1]


@given(mixes(), thousandths)
def test_losing_less_never_lowers_a_weight_and_moves_the_other_not_at_all(mix, share):
    lam, gamma, gamma_partner, mu = mix
    weight, partner_weight = label_weights(lam, gamma, gamma_partner, mu)
    less = label_weights(lam, gamma * share, gamma_partner, mu)
    assert less[0] >= weight
    assert less[1] == partner_weight
    less = label_weights(lam, gamma, gamma_partner * share, mu)
    assert less[0] == weight
    assert less[1] >= partner_weight


@given(mixes(), positive_thousandths)
def test_weights_stay_when_gamma_and_mu_scale_together(mix, factor):
    lam, gamma, gamma_partner, mu = mix
    scaled = label_weights(lam, factor * gamma, factor * gamma_partner, factor * mu)
    assert scaled == label_weights(lam, gamma, gamma_partner, mu)


@given(mixes(), st.sampled_from(["paper", "area", "none"]))
def test_swapping_the_pair_swaps_the_weights(mix, decay):
    lam, gamma, gamma_partner, mu = mix
    swapped = label_weights(1 - lam, gamma_partner, gamma, mu, decay=decay)
    assert swapped[::-1] == label_weights(lam, gamma, gamma_partner, mu, decay=decay)


@given(unit, unit, st.sampled_from(["paper", "area", "none"]))
def test_nothing_erased_is_plain_mixup_to_the_bit(lam, mu, decay):
    assert label_weights(lam, 0.0, 0.0, mu, decay=decay) == (lam, 1 - lam)
    lam_B = torch.tensor([lam])
    plain = label_weights(lam_B, torch.zeros(1), torch.zeros(1), max(mu, 1e-30), decay=decay)
    assert all(map(torch.equal, plain, (lam_B, 1 - lam_B)))


@given(unit, unit, unit)
def test_an_image_that_lost_as_much_as_it_can_has_no_weight(lam, mu, share):
    mu = max(mu, 1e-30)
    assert label_weights(lam, mu, share * mu, mu)[0] == 0
    assert label_weights(lam, share * mu, mu, mu)[1] == 0


@given(seeds, unit, st.floats(1e-30, 1), st.sampled_from(["paper", "area", "none"]))
def test_rates_as_they_are_drawn_never_round_to_a_weight_out_of_range(seed, lam, mu, decay):
    gamma = torch.cat([draw_rates(20, mu=mu, generator=stream(seed, "test")), torch.tensor([mu])])
    lam_B = torch.tensor(lam).expand(21)
    weight, partner_weight = label_weights(lam_B, gamma, gamma.flip(0), mu, decay=decay)
    assert ((weight >= 0) & (weight <= lam_B)).all()
    assert ((partner_weight >= 0) & (partner_weight <= 1 - lam_B)).all()
    assert (weight + partner_weight <= 1).all()


@given(mixes())
def test_the_ablations_pay_for_the_area_or_not_at_all(mix):
    lam, gamma, gamma_partner, _ = mix
    by_area = (lam - lam * gamma, (1 - lam) - (1 - lam) * gamma_partner)
    assert label_weights(*mix, decay="area") == by_area
    assert label_weights(*mix, decay="none") == (lam, 1 - lam)


@given(unit)
def test_at_mu_0_labels_are_left_alone_and_nothing_is_erased(lam):
    gamma = draw_rates(3, mu=0.0, generator=stream(0, "test"))
    assert (gamma == 0).all()
    lam_B = torch.tensor([lam] * 3)
    assert all(map(torch.equal, label_weights(lam_B, gamma, gamma.flip(0), 0.0), (lam_B, 1 - lam_B)))
    images = torch.ones(3, 1, 4, 4)
    erased = erase_patches(images, gamma, patch_size=2, generator=stream(0, "test"))
    assert torch.equal(erased, images)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0])
def test_the_mean_label_mass_is_a_half_whatever_mu_is(mu):
    n = 100_000
    gamma = draw_rates(2 * n, mu=mu, generator=stream(0, "test")).view(2, n)
    total = sum(label_weights(torch.rand(n, generator=stream(0, "lam")), *gamma, mu))
    assert total.mean().item() == pytest.approx(0.5, abs=4 * total.std().item() / n**0.5)


@pytest.mark.parametrize("mu", [-0.01, 1.01, float("nan")])
def test_a_mu_outside_the_unit_interval_is_refused(mu):
    with pytest.raises(ValueError, match="mu="):
        label_weights(0.5, 0.0, 0.0, mu)
    with pytest.raises(ValueError, match="mu="):
        draw_rates(1, mu=mu, generator=stream(0, "test"))


def test_another_decay_is_refused_by_name():
    with pytest.raises(ValueError, match="decay='linear'"):
        label_weights(0.5, 0.0, 0.0, 0.5, decay="linear")


# --- erasing rates -------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0])
def test_rates_are_uniform_up_to_mu(mu):
    gamma = draw_rates(5000, mu=mu, generator=stream(0, "test"))
    assert gamma.dtype == torch.float32
    assert stats.kstest(gamma.numpy(), stats.uniform(0, mu).cdf).pvalue > 0.001


@given(seeds, unit, st.integers(0, 9))
def test_rates_lie_within_0_and_mu(seed, mu, n):
    gamma = draw_rates(n, mu=mu, generator=stream(seed, "test"))
    assert gamma.shape == (n,)
    assert ((gamma >= 0) & (gamma <= torch.tensor(mu))).all()


# --- erasing patches -----------------------------------------------------------------------


@st.composite
def erasures(draw):
    """(images, gamma, patch size): images of ones, odd batches and a batch of one too."""
    height, width, patch_size = draw(sizes)
    rates = draw(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5))
    images = torch.ones(len(rates), 2, height, width, dtype=draw(dtypes))
    return images, torch.tensor(rates, dtype=torch.float32), patch_size


def patches_of(mask_BHW, patch_size):
    """Pixels of each patch, (B, N, pixels)."""
    tiles = mask_BHW.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)
    return tiles.flatten(3).flatten(1, 2)


@given(erasures(), seeds)
def test_whole_patches_are_erased_and_as_many_as_gamma_says_rounded(erasure, seed):
    images, gamma, patch_size = erasure
    erased = erase_patches(images, gamma, patch_size=patch_size, generator=stream(seed, "test"), fill="zero")
    tiles = patches_of(erased[:, 0] == 0, patch_size)
    assert (tiles.all(2) == tiles.any(2)).all()
    expected = [round(rate * tiles.shape[1]) for rate in gamma.tolist()]
    assert tiles.all(2).sum(1).tolist() == expected
    assert torch.equal(erased[:, 0], erased[:, 1])


@given(erasures(), seeds, st.sampled_from(["pixel", "zero"]))
def test_the_erased_share_differs_from_gamma_by_at_most_half_a_patch(erasure, seed, fill):
    images, gamma, patch_size = erasure
    images = images * 100  # what no noise reaches
    erased = erase_patches(images, gamma, patch_size=patch_size, generator=stream(seed, "test"), fill=fill)
    lost = (erased != 100).all(1).double().mean((1, 2))
    patches = images[0, 0].numel() / patch_size**2
    assert ((lost - gamma).abs() <= 0.5 / patches + 1e-6).all()


@given(erasures(), seeds, st.sampled_from(["pixel", "zero"]))
def test_erasing_returns_new_images_of_the_same_kind_and_leaves_its_inputs_alone(erasure, seed, fill):
    images, gamma, patch_size = erasure
    gamma_before = gamma.clone()
    erased = erase_patches(images, gamma, patch_size=patch_size, generator=stream(seed, "test"), fill=fill)
    assert (images == 1).all()
    assert torch.equal(gamma, gamma_before)
    assert erased.data_ptr() != images.data_ptr()
    assert (erased.shape, erased.dtype) == (images.shape, images.dtype)


@given(erasures(), seeds)
def test_noise_fills_every_pixel_of_the_mask_and_none_outside(erasure, seed):
    images, gamma, patch_size = erasure
    images = images * 100  # what no noise reaches
    mask = patch_mask(images, gamma, patch_size=patch_size, generator=stream(seed, "test"))
    erased = erase_patches(images, gamma, patch_size=patch_size, generator=stream(seed, "test"))
    assert torch.equal((erased != 100).all(1), mask)
    assert torch.equal((erased != 100).any(1), mask)


def test_the_noise_is_standard_normal_and_another_in_every_pixel_and_channel():
    images = torch.zeros(4, 3, 32, 32)
    erased = erase_patches(images, torch.ones(4), patch_size=8, generator=stream(0, "test"))
    assert stats.kstest(erased.flatten().numpy(), stats.norm.cdf).pvalue > 0.001
    assert len(erased.unique()) > 0.99 * erased.numel()


@given(seeds)
def test_the_mask_is_the_same_whatever_the_images_precision_and_fill(seed):
    images, gamma = 100 * torch.ones(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.8])
    found = [
        erase_patches(images.to(dtype), gamma, patch_size=2, generator=stream(seed, "test"), fill=fill) == 100
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for fill in ("pixel", "zero")
    ]
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("erased", [1, 4, 11])
def test_every_patch_is_erased_equally_often(erased):
    """Chi-square over the 12 patches; counts without replacement vary less than multinomial ones."""
    n, patches = 6000, 12
    gamma = torch.full((n,), erased / patches)
    mask = patch_mask(torch.zeros(n, 1, 6, 8), gamma, patch_size=2, generator=stream(1, "test"))
    often = mask[:, ::2, ::2].sum(0).flatten().double()
    expected = n * erased / patches
    variance_share = (patches - erased) / (patches - 1)
    statistic = ((often - expected) ** 2).sum().item() / expected / variance_share
    assert 0.001 < stats.chi2(patches - 1).sf(statistic) < 0.999


def test_every_pair_of_patches_is_erased_equally_often():
    n = 6000
    mask = patch_mask(
        torch.zeros(n, 1, 4, 6), torch.full((n,), 2 / 6), patch_size=2, generator=stream(0, "test")
    )
    chosen = mask[:, ::2, ::2].flatten(1).long() @ (2 ** torch.arange(6))
    pairs, often = np.unique(chosen.numpy(), return_counts=True)
    assert len(pairs) == 15
    assert stats.chisquare(often).pvalue > 0.001


@pytest.mark.parametrize("patch_size", [0, -4, 3, 16])
def test_patches_that_do_not_tile_the_image_are_refused(patch_size):
    with pytest.raises(ValueError, match=f"patch_size={patch_size} does not tile a 8x12 image"):
        erase_patches(
            torch.zeros(1, 1, 8, 12), torch.zeros(1), patch_size=patch_size, generator=stream(0, "test")
        )


@pytest.mark.parametrize("gamma", [torch.zeros(3), torch.zeros(2, 1), torch.tensor(0.0)])
def test_anything_but_one_rate_an_image_is_refused(gamma):
    with pytest.raises(ValueError, match="one rate an image"):
        erase_patches(torch.zeros(2, 1, 4, 4), gamma, patch_size=2, generator=stream(0, "test"))


def test_another_fill_is_refused_by_name():
    with pytest.raises(ValueError, match="fill='mean'"):
        erase_patches(
            torch.zeros(1, 1, 4, 4), torch.zeros(1), patch_size=2, generator=stream(0, "test"), fill="mean"
        )


# --- RandomErasing -------------------------------------------------------------------------

SHAPE = (2000, 1, 24, 32)


def extents(changed_BHW):
    """(height, width, top, left) of the one rectangle that changed in each image, for images where one did."""
    found = []
    for changed_HW in changed_BHW[changed_BHW.any((1, 2))].numpy():
        rows, columns = changed_HW.any(1).nonzero()[0], changed_HW.any(0).nonzero()[0]
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert changed_HW.sum() == height * width, "not one full rectangle"
        found.append((height, width, rows[0], columns[0]))
    return np.array(found)


@pytest.fixture(scope="module")
def rectangles():
    """Extents of our rectangles and of timm's, and in how many images there were any."""
    ours = erase_rectangles(torch.zeros(SHAPE), generator=stream(0, "test"), probability=1.0)
    state = random.getstate()
    random.seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        timms = TimmErasing(probability=1.0, mode="pixel", device="cpu")(torch.zeros(SHAPE))
    random.setstate(state)
    return extents(ours[:, 0] != 0), extents(timms[:, 0] != 0)


@pytest.mark.parametrize(
    "measure",
    [
        lambda height, width, top, left: height,
        lambda height, width, top, left: width,
        lambda height, width, top, left: height * width,
        lambda height, width, top, left: height / width,
        lambda height, width, top, left: top,
        lambda height, width, top, left: left,
        lambda height, width, top, left: top + height,
        lambda height, width, top, left: left + width,
    ],
    ids=["height", "width", "area", "aspect", "top", "left", "bottom", "right"],
)
def test_rectangles_are_distributed_as_timms(rectangles, measure):
    ours, timms = (measure(*extent.T) for extent in rectangles)
    assert stats.ks_2samp(ours, timms, method="asymp").pvalue > 0.001


def test_every_image_finds_a_rectangle_as_often_as_in_timm(rectangles):
    ours, timms = map(len, rectangles)
    assert abs(ours - timms) <= 0.005 * SHAPE[0]


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_as_many_images_lose_a_rectangle_as_the_probability_says(probability):
    n = 4000
    images = torch.zeros(n, 1, 16, 16)
    erased = erase_rectangles(images, generator=stream(2, "test"), probability=probability)
    share = (erased != 0).any(3).any(2).double().mean().item()
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / n) ** 0.5)


def test_as_few_images_as_in_timm_lose_a_rectangle_by_default():
    """A quarter, each a uniform share of the image between 2 % and a third, rounded to pixels."""
    images = torch.zeros(4000, 1, 64, 64)
    erased = erase_rectangles(images, generator=stream(0, "test"))
    share = (erased != 0).double().mean((1, 2, 3))
    lost = share[share > 0]
    assert abs(len(lost) - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5
    assert stats.kstest(lost.numpy(), stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 0.001


@given(seeds, st.integers(1, 5), sizes, dtypes)
def test_erasing_rectangles_leaves_its_input_alone_and_keeps_the_kind(seed, n, size, dtype):
    images = torch.full((n, 3, *size[:2]), 100.0, dtype=dtype)
    erased = erase_rectangles(images, generator=stream(seed, "test"), probability=0.5)
    assert (images == 100).all()
    assert (erased.shape, erased.dtype) == (images.shape, images.dtype)
    changed = erased != 100
    assert torch.equal(changed.all(1), changed.any(1))


@given(seeds, sizes)
def test_a_rectangle_keeps_off_one_row_and_one_column_at_least(seed, size):
    """As in timm, one that spans the image is drawn again."""
    mask = rectangle_mask(
        torch.zeros(8, 1, *size[:2]),
        generator=stream(seed, "test"),
        probability=1.0,
        min_area=0.02,
        max_area=1.0,
        min_aspect=0.3,
    )
    assert not mask.any(2).all(1).any()
    assert not mask.any(1).all(1).any()


def test_an_image_too_small_for_any_rectangle_stays_whole():
    images = torch.zeros(5, 1, 1, 1)
    assert torch.equal(erase_rectangles(images, generator=stream(0, "test"), probability=1.0), images)
