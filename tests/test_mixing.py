"""Lambda, MixUp and CutMix: against the beta distribution, and against timm's Mixup."""

from hypothesis import given
from hypothesis import strategies as st
import pytest
from scipy import special, stats
import timm.data.mixup as timm_mixup
from timm.loss import SoftTargetCrossEntropy
import torch

from dcvit.losses import two_label_loss
from dcvit.mixing import cutmix_map, draw_lambda, mix_images, mixup_map, partner
from dcvit.rng import stream

seeds = st.integers(0, 2**32)
lambdas = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1, width=32)
alphas = (
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-45, 1e-38, 1e-10, 1e-3, 0.05, 1.0, 10.0])
    | st.floats(0, 10)
    | st.floats(-300, 1).map(lambda exponent: 10.0**exponent)
)
DRAWS = 100_000

# --- lambda --------------------------------------------------------------------------------


@given(alphas, seeds)
def test_lambda_is_finite_and_in_the_unit_interval_for_every_alpha(alpha, seed):
    for given_alpha in (alpha, torch.tensor(alpha), torch.tensor(alpha, dtype=torch.float64)):
        lam = draw_lambda(given_alpha, (20,), generator=stream(seed, "test"))
        assert lam.dtype == torch.float32
        assert ((lam >= 0) & (lam <= 1)).all()  # NaN fails both


@pytest.mark.parametrize("alpha", [1e3, 1e30, 1e300])
def test_a_huge_alpha_mixes_in_halves(alpha):
    lam = draw_lambda(alpha, (20,), generator=stream(0, "test"))
    torch.testing.assert_close(lam, torch.full((20,), 0.5), atol=5 / alpha**0.5, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.5, 0.8, 8])
def test_lambda_has_the_moments_of_the_beta_distribution(alpha):
    """Of lambda and of its smaller side m = min(lambda, 1 - lambda), within 4 standard errors.

    E[m] = 2 int_0^(1/2) x f(x) dx = I_(1/2)(a + 1, a), and E[m^2] likewise.
    """
    lam = draw_lambda(alpha, (DRAWS,), generator=stream(0, "test", str(alpha))).double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert lam.mean().item() == pytest.approx(0.5, abs=4 * (variance / DRAWS) ** 0.5)

    smaller = torch.minimum(lam, 1 - lam).mean().item()
    mean = special.betainc(alpha + 1, alpha, 0.5)
    square = (alpha + 1) / (2 * alpha + 1) * special.betainc(alpha + 2, alpha, 0.5)
    assert smaller == pytest.approx(mean, abs=4 * ((square - mean**2) / DRAWS) ** 0.5)


def test_the_smaller_side_has_the_printed_means():
    """0.03 at alpha 0.05, 0.23 at 0.8, 0.40 at 8: the closed form above is the right one."""
    means = [special.betainc(alpha + 1, alpha, 0.5) for alpha in (0.05, 0.8, 8)]
    assert means == pytest.approx([0.03, 0.23, 0.40], abs=0.005)


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0, 8.0])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_lambda_has_the_beta_distribution(alpha, kind):
    lam = draw_lambda(kind(alpha), (20_000,), generator=stream(1, "test"))
    assert stats.kstest(lam.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.001


@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05])
def test_a_small_alpha_has_the_beta_distribution_down_to_the_smallest_numbers(alpha):
    """Most of its mass is where float32 has ties, at 0 and 1, so the shares below some points are compared."""
    lam = draw_lambda(alpha, (DRAWS,), generator=stream(2, "test")).double()
    for point in (1e-35, 1e-20, 1e-5, 0.01, 0.3, 0.5, 0.7, 0.99):
        share = stats.beta(alpha, alpha).cdf(point)
        found = (lam <= point).double().mean().item()
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / DRAWS) ** 0.5)


@pytest.mark.parametrize("alpha", [0.0, -0.0, torch.tensor(0.0), torch.tensor(-0.0)])
def test_alpha_0_does_not_mix_at_all(alpha):
    assert (draw_lambda(alpha, (50,), generator=stream(0, "test")) == 1).all()


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_no_alpha_is_refused(alpha):
    with pytest.raises(ValueError, match="finite and >= 0"):
        draw_lambda(alpha, (1,), generator=stream(0, "test"))


@pytest.mark.parametrize("alpha", [-0.1, float("nan")])
def test_a_tensor_that_is_no_alpha_gives_nan(alpha):
    assert draw_lambda(torch.tensor(alpha), (5,), generator=stream(0, "test")).isnan().all()


def test_a_tensor_of_alphas_is_taken_one_by_one():
    alpha = torch.tensor([0.0, 0.8, float("nan"), 1e4])
    lam = draw_lambda(alpha, (100, 4), generator=stream(0, "test"))
    assert (lam[:, 0] == 1).all()
    assert lam[:, 1].std() > 0.2
    assert lam[:, 2].isnan().all()
    assert ((lam[:, 3] - 0.5).abs() < 0.05).all()


@given(alphas, seeds)
def test_lambda_depends_on_the_generator_alone(alpha, seed):
    first = draw_lambda(alpha, (7,), generator=stream(seed, "test"))
    torch.rand(3)
    assert torch.equal(first, draw_lambda(alpha, (7,), generator=stream(seed, "test")))


@given(seeds)
def test_other_seeds_give_other_lambdas(seed):
    one, other = (draw_lambda(0.8, (7,), generator=stream(seed + i, "test")) for i in (0, 1))
    assert not torch.equal(one, other)


# --- the maps ------------------------------------------------------------------------------


@given(st.lists(lambdas, min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 9))
def test_mixups_map_is_lambda_everywhere(lam, height, width):
    lam_G = torch.tensor(lam, dtype=torch.float32)
    found = mixup_map(lam_G, height=height, width=width)
    assert found.shape == (len(lam), height, width)
    assert (found == lam_G[:, None, None]).all()


@given(lambdas, st.integers(1, 24), st.integers(1, 24), seeds)
def test_cutmixs_map_is_one_box_of_zeros_no_larger_than_asked_for(lam, height, width, seed):
    found = cutmix_map(torch.tensor([lam]), height=height, width=width, generator=stream(seed, "test"))[0]
    assert ((found == 0) | (found == 1)).all()
    rows, columns = (found == 0).any(1), (found == 0).any(0)
    assert torch.equal(found == 0, rows[:, None] & columns[None])  # a product of rows and columns,
    assert rows.int().diff().abs().sum() <= 2  # without gaps
    assert columns.int().diff().abs().sum() <= 2
    assert found.mean() >= lam - 1e-6  # the border cuts, and sides are rounded down


@given(st.integers(2, 16), st.integers(2, 16), seeds)
def test_cutmix_at_lambda_1_keeps_the_image_and_never_fails_at_0(height, width, seed):
    found = cutmix_map(torch.tensor([1.0, 0.0]), height=height, width=width, generator=stream(seed, "test"))
    assert (found[0] == 1).all()
    assert found[1].mean() < 1


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (9, 5)])
def test_cutmixs_boxes_are_those_of_timm_at_the_papers_date(height, width):
    """Sides sqrt(1 - lambda), halved and rounded down, around a uniform pixel, cut at the border.

    timm's newer releases round one of the two halves up.
    """
    n, lam = 20_000, 0.45
    ratio = (1 - lam) ** 0.5
    found = cutmix_map(torch.full((n,), lam), height=height, width=width, generator=stream(0, "test")) == 0
    for inside, size in ((found.any(2), height), (found.any(1), width)):
        half = int(size * ratio) // 2
        expected = torch.zeros(size)
        for centre in range(size):
            expected[max(centre - half, 0) : min(centre + half, size)] += 1 / size
        error = (expected * (1 - expected) / n).sqrt()
        # cut off: no row of the box is left where a half is 0, so halves are positive here
        assert half > 0
        assert ((inside.double().mean(0) - expected).abs() <= 4 * error + 1e-12).all()


# --- mixing --------------------------------------------------------------------------------


@st.composite
def batches(draw, even=False):
    """(images, groups), in any float type, of groups of any size >= 1."""
    groups = draw(st.integers(1, 3))
    size = draw(st.integers(1, 4)) * (2 if even else 1)
    shape = (groups * size, draw(st.integers(1, 3)), draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    images = torch.randn(shape, generator=torch.Generator().manual_seed(draw(seeds)))
    return images.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))), groups


@given(batches())
def test_partners_are_the_flipped_group_and_partners_of_each_other(batch):
    images, groups = batch
    size = len(images) // groups
    expected = [g * size + size - 1 - i for g in range(groups) for i in range(size)]
    assert torch.equal(partner(images, groups), images[expected])
    assert torch.equal(partner(partner(images, groups), groups), images)


@given(batches(), seeds)
def test_mixing_is_the_weighted_mean_of_an_image_and_its_partner(batch, seed):
    images, groups = batch
    weights = torch.rand(groups, *images.shape[2:], generator=stream(seed, "test"))
    per_image = weights.repeat_interleave(len(images) // groups, 0)[:, None].to(images.dtype).double()
    expected = per_image * images.double() + (1 - per_image) * partner(images.double(), groups)
    tolerance = 8 * torch.finfo(images.dtype).eps * images.abs().max().item()
    mixed = mix_images(images, weights)
    assert mixed.dtype == images.dtype
    torch.testing.assert_close(mixed.double(), expected, atol=tolerance, rtol=0)


@given(batches(), seeds)
def test_groups_never_mix_with_each_other(batch, seed):
    images, groups = batch
    weights = torch.rand(groups, *images.shape[2:], generator=stream(seed, "test"))
    size = len(images) // groups
    alone = [mix_images(images[g * size :][:size], weights[g : g + 1]) for g in range(groups)]
    assert torch.equal(mix_images(images, weights), torch.cat(alone))


@given(batches())
def test_mixing_leaves_its_inputs_alone(batch):
    images, groups = batch
    before, weights = images.clone(), torch.full((groups, *images.shape[2:]), 0.25)
    mixed = mix_images(images, weights)
    assert torch.equal(images, before)
    assert (weights == 0.25).all()
    assert mixed.data_ptr() != images.data_ptr()


@given(batches())
def test_weights_of_1_keep_the_images_and_weights_of_0_give_their_partners(batch):
    images, groups = batch
    ones = torch.ones(groups, *images.shape[2:])
    assert torch.equal(mix_images(images, ones), images)
    assert torch.equal(mix_images(images, 0 * ones), partner(images, groups))


@given(lambdas)
def test_an_image_alone_is_its_own_partner(lam):
    image = torch.randn(1, 3, 4, 4, generator=stream(0, "test"))
    mixed = mix_images(image, mixup_map(torch.tensor([lam]), height=4, width=4))
    torch.testing.assert_close(mixed, image)


def test_a_batch_that_does_not_split_into_the_groups_is_refused():
    with pytest.raises(ValueError, match="5 images do not split into 2 equal groups"):
        mix_images(torch.zeros(5, 1, 2, 2), torch.ones(2, 2, 2))


# --- timm ----------------------------------------------------------------------------------

CLASSES = 7


def timms_batch(images, labels, *, lam, box=None, smoothing):
    """What timm's Mixup makes of a batch when it draws this lambda, and this box if it is CutMix."""
    mixup = timm_mixup.Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, mode="batch", label_smoothing=smoothing, num_classes=CLASSES
    )
    mixup._params_per_batch = lambda: (lam, box is not None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_mixup, "rand_bbox", lambda *args, **options: box)
        return mixup(images.clone(), labels)


def box_of(map_HW):
    """(top, bottom, left, right) of the zeros, as timm gives them."""
    rows, columns = ((map_HW == 0).any(dim).nonzero().flatten() for dim in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1


@given(batches(even=True), lambdas, seeds, st.booleans(), st.sampled_from([0.0, 0.1]))
def test_batch_and_loss_equal_timms(batch, lam, seed, cut, smoothing):
    images, rng = batch[0].float(), stream(seed, "test")
    (height, width), lam_G = images.shape[2:], torch.tensor([lam])
    if cut:
        weights = cutmix_map(lam_G, height=height, width=width, generator=rng)
    else:
        weights = mixup_map(lam_G, height=height, width=width)
    labels = torch.randint(CLASSES, (len(images),), generator=rng)
    logits = 3 * torch.randn(len(images), CLASSES, generator=rng)

    box = box_of(weights[0]) if cut else None
    expected, target = timms_batch(images, labels, lam=lam, box=box, smoothing=smoothing)
    torch.testing.assert_close(mix_images(images, weights), expected, atol=1e-5, rtol=0)

    realised = weights.mean((1, 2)).expand(len(images))
    loss = two_label_loss(logits, labels, partner(labels), realised, 1 - realised, smoothing=smoothing)
    torch.testing.assert_close(loss.mean, SoftTargetCrossEntropy()(logits, target), atol=1e-5, rtol=0)
