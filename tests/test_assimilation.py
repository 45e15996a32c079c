"""Assimilation rate (Eq. 3) and periods, against curves whose slopes and borders are known in closed form.

A logistic share with centre c and width w has the slope sech^2((t - c) / 2w) / 4w. It is a part rho of its
peak at c -/+ 2 w arccosh(1 / sqrt(rho)): 2.634 w at rho = 0.25. Below, c and w are fractions of training.
"""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from numpy.polynomial import Polynomial
import pytest

from dcvit.assimilation import assimilation_rate, find_periods, fit_proportions
from dcvit.recipe import Periods

TOLERANCE = 0.03  # of training
NARROWEST = {40: 0.05, 100: 0.03, 300: 0.03}  # epochs -> smallest w; the largest is 0.08
HARDEST = {40: (0.33, 0.05), 100: (0.35, 0.03), 300: (0.35, 0.03)}  # where a dense search found most error

seeds = st.integers(0, 2**32)


def logistic(epochs, c, w):
    return 1 / (1 + np.exp(-(np.arange(1, epochs + 1) / epochs - c) / w))


def with_noise(share, rng, sd=0.01):
    """A share with independent noise, kept in [0, 1] as every share is."""
    return (share + sd * rng.standard_normal(share.shape)).clip(0, 1)


def cut(epochs):
    return max(1, epochs // 50)


def true_borders(c, w, rho=0.25):
    half = 2 * w * np.arccosh(1 / np.sqrt(rho))
    return np.array([c - half, c + half])


def found_borders(easy, hard, **options):
    found = find_periods(easy, hard, **options)
    return np.array([found.formation_end, found.exploration_start])


def median_error(epochs, c, w, rng, draws):
    """Median over `draws` of the larger of the two borders' errors; a draw that raises fails the test."""
    easy = logistic(epochs, c, w)
    found = [found_borders(with_noise(easy, rng), with_noise(1 - easy, rng)) for _ in range(draws)]
    return np.median(np.abs(found - true_borders(c, w)).max(axis=1))


# --- the rate ------------------------------------------------------------------------------


@st.composite
def shares(draw):
    """Two arbitrary shares (E,), from the shortest run that can be fitted to one of degree 12."""
    rng = np.random.default_rng(draw(seeds))
    return rng.random((2, draw(st.sampled_from([10, 25, 99, 100, 130]))))


@settings(deadline=None)
@given(shares())
def test_the_rate_has_one_non_negative_value_per_epoch(pair):
    rate = assimilation_rate(*pair)
    assert rate.shape == pair[0].shape
    assert (rate >= 0).all()


@settings(deadline=None)
@given(shares(), st.floats(0, 0.5), st.floats(0, 0.5))
def test_constant_offsets_do_not_change_the_rate(pair, easy_offset, hard_offset):
    easy, hard = pair / 2
    shifted = assimilation_rate(easy + easy_offset, hard + hard_offset)
    np.testing.assert_allclose(shifted, assimilation_rate(easy, hard), atol=1e-9)


@settings(deadline=None)
@given(shares(), st.floats(0, 1))
def test_the_rate_scales_with_the_shares(pair, scale):
    scaled = assimilation_rate(*(scale * pair))
    np.testing.assert_allclose(scaled, scale * assimilation_rate(*pair), atol=1e-9)


@settings(deadline=None)
@given(shares())
def test_easy_and_hard_count_alike(pair):
    np.testing.assert_allclose(assimilation_rate(*pair[::-1]), assimilation_rate(*pair), atol=1e-12)


@settings(deadline=None)
@given(shares())
def test_time_reversed_gives_the_rate_reversed(pair):
    np.testing.assert_allclose(assimilation_rate(*pair[:, ::-1]), assimilation_rate(*pair)[::-1], atol=1e-9)


@settings(deadline=None)
@given(seeds, st.sampled_from([10, 25, 100, 300]), st.integers(0, 8))
def test_a_polynomial_up_to_degree_8_is_recovered(seed, epochs, degree):
    rng = np.random.default_rng(seed)
    done = np.arange(1, epochs + 1) / epochs
    easy, hard = (
        Polynomial([0.5]) + Polynomial(0.5 * part / np.abs(part).sum())
        for part in rng.standard_normal((2, degree + 1))
    )
    fit = fit_proportions(easy(done), hard(done))
    rate = (np.abs(easy.deriv()(done)) + np.abs(hard.deriv()(done))) / 2 / epochs
    np.testing.assert_allclose(fit.easy, easy(done), atol=1e-6)
    np.testing.assert_allclose(fit.hard, hard(done), atol=1e-6)
    np.testing.assert_allclose(fit.rate, rate, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("epochs", [40, 100, 300])
def test_the_slope_of_a_logistic_curve(epochs):
    """Easy and hard move at different times: the rate is their half sum at every moment."""
    done = np.arange(1, epochs + 1) / epochs
    easy, hard = logistic(epochs, 0.55, 0.15), 1 - logistic(epochs, 0.45, 0.2)
    slopes = np.cosh((done - 0.55) / 0.3) ** -2 / 0.6 + np.cosh((done - 0.45) / 0.4) ** -2 / 0.8
    kept = slice(cut(epochs), -cut(epochs))
    np.testing.assert_allclose(assimilation_rate(easy, hard)[kept], (slopes / 2 / epochs)[kept], rtol=0.02)


def test_the_fit_is_closer_to_the_truth_than_the_data():
    easy = logistic(300, 0.3, 0.08)
    fit = fit_proportions(*with_noise(np.stack([easy, 1 - easy]), np.random.default_rng(0)))
    assert np.std(fit.easy - easy) < 0.005
    assert np.std(fit.hard - (1 - easy)) < 0.005


def test_the_degree_is_the_default_of_the_length_or_the_one_asked_for():
    easy = logistic(100, 0.3, 0.06)
    assert fit_proportions(easy, 1 - easy).degree == 12
    assert fit_proportions(easy[1:], 1 - easy[1:]).degree == 8
    assert fit_proportions(easy, 1 - easy, degree=3).degree == 3
    np.testing.assert_allclose(assimilation_rate(easy, 1 - easy, degree=1), np.ptp(np.polyval(
        np.polyfit(np.arange(100), easy, 1), [0, 1])))  # fmt: skip


def test_the_standard_error_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    line = np.linspace(0.1, 0.9, 20)  # steep against the noise, so that no slope changes its sign
    noise = 0.001 * rng.standard_normal((1000, 20))
    # Easy and hard share their noise, the case in which the bound is the error itself.
    fits = [fit_proportions(line + one, 1 - line - one) for one in noise]
    spread = np.std([fit.rate for fit in fits], axis=0)
    np.testing.assert_allclose(np.mean([fit.rate_error for fit in fits], axis=0), spread, rtol=0.1)


# --- the periods ---------------------------------------------------------------------------


def logistic_curves(epochs, number, rng):
    """Random (c, w) with growth beginning after the cut and ending before two thirds of training."""
    found = []
    while len(found) < number:
        c, w = rng.uniform(0.1, 0.35), rng.uniform(NARROWEST[epochs], 0.08)
        begin, end = true_borders(c, w)
        if begin > cut(epochs) / epochs and end < 2 / 3:
            found.append((c, w))
    return found


@pytest.mark.parametrize("epochs", [40, 100, 300])
def test_borders_are_found_in_noise(epochs):
    rng = np.random.default_rng(epochs)
    errors = {cw: median_error(epochs, *cw, rng, draws=100) for cw in logistic_curves(epochs, 30, rng)}
    assert {cw: error for cw, error in errors.items() if error > TOLERANCE} == {}


@pytest.mark.parametrize("epochs", [40, 100, 300])
def test_borders_are_found_in_noise_where_it_is_hardest(epochs):
    """The narrowest growth blurs most: at 40 epochs the error is 2.97 %, so more draws decide."""
    assert median_error(epochs, *HARDEST[epochs], np.random.default_rng(epochs), draws=400) <= TOLERANCE


@pytest.mark.parametrize("epochs", [40, 100, 300])
def test_borders_are_found_where_growth_begins_right_after_the_cut(epochs):
    rng = np.random.default_rng(epochs)
    widths = [w for w in np.linspace(NARROWEST[epochs], 0.08, 6) if cut(epochs) / epochs + 2.7 * w >= 0.1]
    errors = {w: median_error(epochs, cut(epochs) / epochs + 2.7 * w, w, rng, draws=100) for w in widths}
    assert {w: error for w, error in errors.items() if error > TOLERANCE} == {}


@pytest.mark.parametrize("rho", [0.1, 0.25, 0.5, 0.8])
def test_rho_sets_the_level(rho):
    easy = logistic(300, 0.35, 0.08)
    found = found_borders(easy, 1 - easy, rho=rho)
    np.testing.assert_allclose(found, true_borders(0.35, 0.08, rho), atol=0.01)


def test_borders_lie_between_epochs():
    """Curves that move by a tenth of an epoch move the borders by about as much."""
    curves = [logistic(40, 0.3 + tenth / 400, 0.08) for tenth in range(30)]
    moves = 40 * np.diff([found_borders(easy, 1 - easy) for easy in curves], axis=0)
    assert ((moves > 0) & (moves < 0.3)).all()


def test_a_steady_rate_in_exploration_is_the_floor():
    easy = 0.5 * logistic(300, 0.3, 0.06) + np.linspace(0, 0.5, 300)
    np.testing.assert_allclose(found_borders(easy, 1 - easy), true_borders(0.3, 0.06), atol=TOLERANCE)


def test_one_share_alone_has_the_same_borders():
    hard = 1 - 0.7 * logistic(300, 0.3, 0.06)
    np.testing.assert_allclose(
        found_borders(np.zeros(300), hard), found_borders((1 - hard) / 2, hard), atol=1e-9
    )


def test_the_unsteady_ends_count_for_nothing():
    """One wrong share at either end makes the rate there higher than the peak."""
    easy = logistic(300, 0.35, 0.08)
    easy[[0, -1]] += 0.2, -0.2
    rate = assimilation_rate(easy, 1 - easy)
    assert min(rate[0], rate[-1]) > rate[6:-6].max()
    np.testing.assert_allclose(found_borders(easy, 1 - easy), true_borders(0.35, 0.08), atol=TOLERANCE)


@pytest.mark.parametrize("epochs", [40, 100, 300])
def test_growth_that_began_within_the_cut_begins_with_the_first_epoch_kept(epochs):
    easy = logistic(epochs, 0.17, 0.065)
    assert find_periods(easy, 1 - easy).formation_end == (cut(epochs) + 1) / epochs


@settings(deadline=None)
@given(shares())
def test_either_an_error_or_periods_within_the_epochs_kept(pair):
    epochs = len(pair[0])
    try:
        found = find_periods(*pair)
    except ValueError:
        return
    first, last = (cut(epochs) + 1) / epochs, 1 - cut(epochs) / epochs
    assert isinstance(found, Periods)
    assert first <= found.formation_end < found.exploration_start <= last


# --- no border is made up ------------------------------------------------------------------

TIME = {epochs: np.arange(1, epochs + 1) / epochs for epochs in (20, 25, 40, 99, 100, 300)}
PEAKLESS = {
    "constant": lambda done: np.full_like(done, 0.4),
    "zero": np.zeros_like,
    "steady": lambda done: 0.1 + 0.8 * done,
    "still but for rounding": lambda done: 0.4 + 1e-9 / (1 + np.exp(-(done - 0.3) / 0.08)),
    "slowing": lambda done: 1 - (1 - done) ** 2,
    "slowing at once": lambda done: 1 - np.exp(-done / 0.1),
    "quick from the start": lambda done: 1 / (1 + np.exp(-(done - 0.1) / 0.08)),
    "quickening": lambda done: done**3,
    "growing at the end": lambda done: 1 / (1 + np.exp(-(done - 1) / 0.08)),
}


@pytest.mark.parametrize("sd", [0, 0.001, 0.01, 0.05])
@pytest.mark.parametrize("curve", PEAKLESS.values(), ids=PEAKLESS)
@pytest.mark.parametrize("epochs", TIME)
def test_a_rate_without_an_interior_peak_is_refused(epochs, curve, sd):
    rng = np.random.default_rng(epochs)
    easy = curve(TIME[epochs])
    for _ in range(20 if sd else 1):
        with pytest.raises(ValueError, match=r"no growth period in \d+ epochs: .* Train for longer"):
            find_periods(with_noise(easy, rng, sd), with_noise(1 - easy, rng, sd))


def test_growth_that_is_not_over_by_the_end_is_refused():
    """It has fallen to half its height, but not to the level."""
    easy = logistic(300, 0.92, 0.04)
    with pytest.raises(ValueError, match="has not fallen again by the end"):
        find_periods(easy, 1 - easy)


def test_nineteen_epochs_are_too_few_and_twenty_enough():
    easy = logistic(20, 0.35, 0.08)
    assert 0 < find_periods(easy, 1 - easy).formation_end < 0.3
    with pytest.raises(ValueError, match="19 epochs: the periods need at least 20"):
        find_periods(easy[:19], 1 - easy[:19])


@pytest.mark.parametrize("function", [fit_proportions, assimilation_rate, find_periods])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.3, 1.3, 37.0])
def test_what_is_no_share_is_refused_with_its_epoch(function, value):
    easy = logistic(40, 0.3, 0.06)
    hard = 1 - easy
    hard[6] = value
    with pytest.raises(ValueError, match=rf"hard is {value} in epoch 7: .* in \[0, 1\]"):
        function(easy, hard)


def test_noise_or_the_shift_of_the_authors_drawing_may_leave_the_range():
    easy = logistic(100, 0.3, 0.06)
    shifted, plain = find_periods(easy + 0.15, 1 - easy - 0.05), find_periods(easy, 1 - easy)
    assert np.allclose(
        [shifted.formation_end, shifted.exploration_start], [plain.formation_end, plain.exploration_start]
    )


def test_a_share_may_leave_its_range_by_rounding():
    assert np.allclose(assimilation_rate(np.full(20, -1e-7), np.full(20, 1 + 1e-7)), 0)


@pytest.mark.parametrize("function", [fit_proportions, assimilation_rate, find_periods])
@pytest.mark.parametrize("shape", [(39,), (40, 1), ()])
def test_shares_of_different_or_wrong_shape_are_refused(function, shape):
    with pytest.raises(ValueError, match="two sequences of one length"):
        function(np.full(shape, 0.5), np.full(shape if shape != (39,) else 40, 0.5))


@pytest.mark.parametrize(("epochs", "degree"), [(9, None), (0, None), (40, 0), (40, 39)])
def test_a_degree_the_epochs_cannot_bear_is_refused(epochs, degree):
    with pytest.raises(ValueError, match=f"for {epochs} epochs: the fit needs"):
        assimilation_rate(np.zeros(epochs), np.ones(epochs), degree=degree)


@pytest.mark.parametrize("rho", [0, 1, -1, np.nan])
def test_rho_outside_its_range_is_refused(rho):
    easy = logistic(40, 0.3, 0.06)
    with pytest.raises(ValueError, match=r"rho .* in \(0, 1\)"):
        find_periods(easy, 1 - easy, rho=rho)


def test_the_shares_given_are_not_changed():
    easy = logistic(40, 0.3, 0.06)
    hard = 1 - easy
    before = easy.copy(), hard.copy()
    find_periods(easy, hard)
    np.testing.assert_array_equal((easy, hard), before)
