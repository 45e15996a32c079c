"""The two-label loss, against the dense soft targets it stands for."""

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch
import torch.nn.functional as F

from dcvit.losses import two_label_loss

smoothings = st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1)


@st.composite
def mixes(draw):
    """(logits, labels, partner labels, weights, partner weights)"""
    B, K = draw(st.integers(1, 7)), draw(st.integers(2, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    labels = torch.randint(K, (2, B), generator=rng)
    weights = torch.rand(2, B, generator=rng)
    return 5 * torch.randn(B, K, generator=rng), *labels, *weights


def dense_loss(logits, labels, partner_labels, weights, partner_weights, smoothing):
    """Soft targets first, then the cross entropy, all in float64."""
    K = logits.shape[1]

    def rows(labels):
        return (1 - smoothing) * F.one_hot(labels, K).double() + smoothing / K

    target = weights[:, None] * rows(labels) + partner_weights[:, None] * rows(partner_labels)
    return -(target * logits.double().log_softmax(1)).sum(1).mean()


@given(mixes(), smoothings)
def test_equals_the_cross_entropy_with_dense_soft_targets(mix, smoothing):
    mean = two_label_loss(*mix, smoothing=smoothing).mean
    torch.testing.assert_close(mean.double(), dense_loss(*mix, smoothing), rtol=1e-5, atol=1e-6)


@given(mixes(), smoothings)
def test_has_the_gradient_of_the_dense_loss(mix, smoothing):
    logits, *rest = mix
    ours, dense = logits.clone().requires_grad_(), logits.double().requires_grad_()
    two_label_loss(ours, *rest, smoothing=smoothing).mean.backward()
    dense_loss(dense, *rest, smoothing).backward()
    torch.testing.assert_close(ours.grad.double(), dense.grad, rtol=1e-4, atol=1e-6)


@given(mixes(), smoothings)
def test_gives_the_largest_probability_of_every_sample_without_gradient(mix, smoothing):
    logits, *rest = mix
    loss = two_label_loss(logits.requires_grad_(), *rest, smoothing=smoothing)
    assert not loss.top_B.requires_grad
    torch.testing.assert_close(loss.top_B, logits.detach().softmax(1).amax(1))


@given(mixes())
def test_is_pytorchs_cross_entropy_where_nothing_is_mixed(mix):
    logits, labels, partner_labels, _, _ = mix
    one, zero = torch.ones(len(labels)), torch.zeros(len(labels))
    found = two_label_loss(logits, labels, partner_labels, one, zero, smoothing=0.1).mean
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, label_smoothing=0.1))


@given(mixes(), smoothings)
def test_an_image_without_weight_costs_nothing_and_teaches_nothing(mix, smoothing):
    logits, labels, partner_labels, weights, partner_weights = mix
    weights[0] = partner_weights[0] = 0
    two_label_loss(
        logits.requires_grad_(), labels, partner_labels, weights, partner_weights, smoothing=smoothing
    ).mean.backward()
    assert (logits.grad[0] == 0).all()


@given(mixes(), smoothings)
def test_swapping_label_and_partner_with_their_weights_changes_nothing(mix, smoothing):
    logits, labels, partner_labels, weights, partner_weights = mix
    swapped = two_label_loss(logits, partner_labels, labels, partner_weights, weights, smoothing=smoothing)
    torch.testing.assert_close(swapped.mean, two_label_loss(*mix, smoothing=smoothing).mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    rng = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(8, 1000, generator=rng)).to(dtype)
    rest = *torch.randint(1000, (2, 8), generator=rng), *torch.rand(2, 8, generator=rng)
    half, full = two_label_loss(logits, *rest), two_label_loss(logits.float(), *rest)
    assert half.mean.dtype == half.top_B.dtype == torch.float32
    assert torch.equal(half.mean, full.mean)
    assert torch.equal(half.top_B, full.top_B)


def test_inputs_stay_as_they_are():
    rng = torch.Generator().manual_seed(0)
    labels, weights = torch.randint(4, (2, 3), generator=rng), torch.rand(2, 3, generator=rng)
    mix = torch.randn(3, 4, generator=rng), *labels, *weights
    before = [part.clone() for part in mix]
    two_label_loss(*mix, smoothing=0.1)
    assert all(map(torch.equal, mix, before))
