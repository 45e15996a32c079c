"""Difficulty counts, their histogram, and the alpha that follows them (Eq. 1, 2, 5, 6)."""

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch

from dcvit.difficulty import (
    count_by_difficulty,
    counts_and_histogram,
    difficulty_counts,
    dynamic_alpha,
    top_score_histogram,
)

unit = st.floats(0, 1)
scores = st.floats(0, 1, width=32)
HUNDREDTHS = [k / 100 for k in range(101)]


@st.composite
def logits(draw):
    """(B, K) logits from hard (all alike) to easy (one far above)."""
    B, K = draw(st.integers(0, 12)), draw(st.integers(2, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    return torch.randn(B, K, generator=rng) * spread


@given(logits())
def test_every_sample_with_finite_logits_is_counted_once(logits):
    counts = difficulty_counts(logits)
    assert counts.dtype == torch.int64
    assert counts.shape == (3,)
    assert counts.sum() == len(logits)


@given(logits())
def test_counts_are_what_the_definition_says(logits):
    top = logits.softmax(1).amax(1).tolist()
    expected = [sum(p > 0.8 for p in top), sum(0.3 <= p <= 0.8 for p in top), sum(p < 0.3 for p in top)]
    assert difficulty_counts(logits).tolist() == expected


@given(logits(), st.integers(0, 12))
def test_counts_add_up_over_any_split(logits, at):
    parts = difficulty_counts(logits[:at]) + difficulty_counts(logits[at:])
    assert torch.equal(parts, difficulty_counts(logits))


@given(logits(), st.randoms(use_true_random=False))
def test_the_order_of_samples_and_of_classes_does_not_matter(logits, random):
    rows = random.sample(range(logits.shape[0]), logits.shape[0])
    columns = random.sample(range(logits.shape[1]), logits.shape[1])
    # the sum over classes in another order may round otherwise, so scores on a border are left out
    top = logits.softmax(1).amax(1)
    clear = ((top - 0.8).abs() > 1e-5) & ((top - 0.3).abs() > 1e-5)
    expected = difficulty_counts(logits[clear])
    assert torch.equal(difficulty_counts(logits[rows][clear[rows]][:, columns]), expected)


def test_both_bounds_are_moderate():
    """With logits whose softmax is exactly the bound, and one float32 step to either side of it."""
    exact = torch.tensor([[0.8, 0.2]]).log()
    assert exact.softmax(1).amax() == torch.tensor(0.8)
    assert difficulty_counts(exact).tolist() == [0, 1, 0]

    for bound, beyond, outside in ((0.8, 1.0, [1, 0, 0]), (0.3, 0.0, [0, 0, 1])):
        at = torch.tensor([bound])
        counted = [
            count_by_difficulty(top, easy_above=0.8, hard_below=0.3).tolist()
            for top in (at, torch.nextafter(at, torch.tensor(beyond)))
        ]
        assert counted == [[0, 1, 0], outside]


@pytest.mark.parametrize("bound", HUNDREDTHS)
def test_any_bound_in_hundredths_is_moderate(bound):
    top = torch.tensor([bound])
    assert count_by_difficulty(top, easy_above=bound, hard_below=bound).tolist() == [0, 1, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_with_bad_logits_are_counted_nowhere(bad):
    logits = torch.zeros(4, 3)
    logits[1, 2] = bad
    assert difficulty_counts(logits).tolist() == [0, 3, 0]
    assert top_score_histogram(logits.softmax(1).amax(1)).sum() == 3


def test_half_precision_logits_are_measured_in_float32():
    """A score of 0.8007, which bfloat16 can't tell from 0.8."""
    logits = torch.tensor([[1.390625, 0.0]], dtype=torch.bfloat16)
    assert logits.softmax(1).amax() == torch.tensor(0.8, dtype=torch.bfloat16)
    assert difficulty_counts(logits).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("easy_above", "hard_below"),
    [(0.3, 0.8), (1.1, 0.3), (0.8, -0.1), (float("nan"), 0.3), (0.8, float("nan"))],
)
def test_bounds_that_are_no_ordered_probabilities_are_refused(easy_above, hard_below):
    with pytest.raises(ValueError, match="hard_below <= easy_above"):
        difficulty_counts(torch.zeros(1, 2), easy_above=easy_above, hard_below=hard_below)


# --- the histogram -------------------------------------------------------------------------


@given(st.lists(scores | st.sampled_from(HUNDREDTHS), max_size=30))
def test_every_threshold_in_hundredths_can_be_read_off_the_histogram(top):
    top = torch.tensor(top, dtype=torch.float32)
    histogram = top_score_histogram(top)
    assert histogram.sum() == len(top)
    for k in range(101):
        easy = count_by_difficulty(top, easy_above=k / 100, hard_below=0.0)[0]
        assert histogram[k:].sum() == easy + (top == 0).sum() * (k == 0)


@pytest.mark.parametrize("k", range(1, 101))
def test_a_score_on_an_edge_belongs_to_the_part_below_it(k):
    histogram = top_score_histogram(torch.tensor([k / 100]))
    assert histogram.nonzero().flatten().tolist() == [k - 1]


@given(st.lists(scores, max_size=20), st.integers(0, 20), st.integers(1, 50))
def test_histograms_add_up_over_any_split(top, at, bins):
    top = torch.tensor(top, dtype=torch.float32)
    parts = top_score_histogram(top[:at], bins=bins) + top_score_histogram(top[at:], bins=bins)
    assert torch.equal(parts, top_score_histogram(top, bins=bins))
    assert parts.shape == (bins,)
    assert parts.dtype == torch.int64


# --- dynamic alpha -------------------------------------------------------------------------


@given(unit, unit, unit, unit)
def test_dynamic_alpha_stays_in_the_unit_interval(previous, easy, hard, tau):
    assert 0 <= dynamic_alpha(previous, easy, hard, tau=tau) <= 1


@given(unit, unit, unit, unit)
def test_dynamic_alpha_is_equations_5_and_6(previous, easy, hard, tau):
    expected = tau * previous + (1 - tau) * (easy + (1 - hard)) / 2
    assert dynamic_alpha(previous, easy, hard, tau=tau) == pytest.approx(expected, abs=1e-15)


def test_the_past_weighs_nine_tenths_by_default():
    assert dynamic_alpha(1.0, easy=0.0, hard=1.0) == 0.9


@given(unit, unit)
def test_an_untrained_model_gets_no_mixing_and_a_perfect_one_alpha_1(previous, tau):
    assert dynamic_alpha(0.0, easy=0.0, hard=1.0, tau=tau) == 0
    assert dynamic_alpha(1.0, easy=1.0, hard=0.0, tau=tau) == 1
    assert dynamic_alpha(previous, easy=0.0, hard=1.0, tau=tau) <= previous


@given(unit, unit, unit)
def test_its_target_is_a_fixed_point(easy, hard, tau):
    target = (easy + 1 - hard) / 2
    assert dynamic_alpha(target, easy, hard, tau=tau) == pytest.approx(target, abs=1e-15)


@given(unit, unit, unit, unit, st.integers(1, 40))
def test_n_steps_with_the_same_shares_have_the_closed_form_of_a_moving_average(previous, easy, hard, tau, n):
    target, alpha = (easy + 1 - hard) / 2, previous
    for _ in range(n):
        alpha = dynamic_alpha(alpha, easy, hard, tau=tau)
    assert alpha == pytest.approx(target + tau**n * (previous - target), abs=1e-12)


@given(unit, unit, unit, unit, unit)
def test_more_easy_samples_raise_it_and_more_hard_ones_lower_it(previous, easy, hard, tau, share):
    alpha = dynamic_alpha(previous, easy, hard, tau=tau)
    assert dynamic_alpha(previous, easy * share, hard, tau=tau) <= alpha
    assert dynamic_alpha(previous, easy, hard * share, tau=tau) >= alpha


@given(unit, unit, unit, unit)
def test_tensors_give_what_floats_give(previous, easy, hard, tau):
    exact = (torch.tensor(value, dtype=torch.float64) for value in (previous, easy, hard))
    assert dynamic_alpha(*exact, tau=tau).item() == dynamic_alpha(previous, easy, hard, tau=tau)


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_a_tau_outside_the_unit_interval_is_refused(tau):
    with pytest.raises(ValueError, match="tau="):
        dynamic_alpha(0.5, 0.5, 0.5, tau=tau)


# --- all of it at once ---------------------------------------------------------------------


@given(st.tuples(unit | st.sampled_from(HUNDREDTHS), unit | st.sampled_from(HUNDREDTHS)), st.data())
def test_counts_and_histogram_at_once_are_those_one_by_one(bounds, data):
    """Also on the bounds, and on the float32 next to them."""
    hard, easy = sorted(bounds)
    on = torch.tensor([hard, easy, *data.draw(st.lists(unit | st.sampled_from(HUNDREDTHS), max_size=9))])
    top_B = torch.cat([on, on.nextafter(torch.tensor(2.0)), on.nextafter(torch.tensor(-1.0))]).clamp(1e-30, 1)
    found = counts_and_histogram(top_B, easy_above=easy, hard_below=hard)
    assert found.dtype == torch.float64
    assert torch.equal(found[:3].long(), count_by_difficulty(top_B, easy_above=easy, hard_below=hard))
    assert torch.equal(found[3:].long(), top_score_histogram(top_B))


def test_scores_that_are_not_finite_are_in_none_of_the_numbers():
    odd = torch.tensor([float("nan"), float("inf"), -float("inf")])
    assert counts_and_histogram(odd, easy_above=0.8, hard_below=0.3).eq(0).all()
    assert counts_and_histogram(torch.zeros(0), easy_above=0.8, hard_below=0.3).eq(0).all()


def test_bounds_that_are_none_are_refused_there_as_well():
    with pytest.raises(ValueError, match=r"hard_below=0\.5, easy_above=0\.4"):
        counts_and_histogram(torch.zeros(1), easy_above=0.4, hard_below=0.5)
