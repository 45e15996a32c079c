"""The rule behind every verdict: by hand, and for any runs at all. How often it errs: `test_error_rates.py`."""

from itertools import combinations, pairwise
from math import comb, sqrt

from hypothesis import assume, given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.stats import t as student_t

from dcvit.statistics import (
    ALPHA,
    MOST_SEEDS,
    Agreement,
    Estimate,
    Exceeds,
    Spread,
    StaysWithin,
    agreement,
    claim_word,
    contrast,
    difference_from_print,
    holm,
    number_word,
    pooled_spread,
    seeds_for_claim,
    seeds_for_number,
)

points = st.integers(-300, 300).map(lambda hundredths: 80 + hundredths / 100)
runs = st.lists(points, min_size=1, max_size=5)  # of one cell, one a seed
tables = st.lists(runs, min_size=2, max_size=6)
priors = st.sampled_from([0.07, 0.15, 1.0])
sizes = st.none() | st.floats(0.01, 2)
coefficients = st.lists(st.sampled_from([1.0, -1.0, 0.5, -0.25]), min_size=1, max_size=4)
estimates = st.builds(Estimate, value=st.floats(-2, 2), error=st.floats(0.01, 1), df=st.integers(1, 60))
spreads = st.builds(Spread, sd=st.floats(0.01, 1), df=st.integers(4, 60), cells=st.integers(1, 20))
questions = st.builds(Exceeds, bound=st.floats(0, 1), size=sizes) | st.builds(
    StaysWithin, delta=st.floats(0, 1)
)
p_values = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0]), max_size=6)

# Order changes the last bits of a mean, as numpy adds up plainly; where nothing is said, it is to be exact.
to_rounding = dict(rel=1e-9, abs=1e-12)


def width(estimate):
    """Of the 90 % interval."""
    return estimate.upper(0.95) - estimate.lower(0.95)


def word_of(question, estimate):
    """The word for the only claim of a table, if it has one part."""
    return claim_word(question.p(estimate), question.p_contrary(estimate))


def clear_of(estimate, *borders):
    """Whether no bound of the interval is so near a border that rounding could decide about the word."""
    bounds = estimate.lower(0.95), estimate.upper(0.95)
    return all(abs(bound - border) > 1e-9 for bound in bounds for border in borders)


# --- spread --------------------------------------------------------------------------------


def test_the_spread_pools_all_cells_and_counts_the_prior_as_four_degrees_of_freedom():
    spread = pooled_spread([[72.0, 72.2], [79.8], [80.0, 80.3, 80.6]], prior=0.15)
    # around their means, the first cell has a sum of squares of 0.02 and the last of 0.18
    assert spread.sd == pytest.approx(sqrt((4 * 0.15**2 + 0.02 + 0.18) / (4 + 1 + 0 + 2)))
    assert (spread.df, spread.cells) == (7, 3)


@given(st.lists(st.lists(points, max_size=1), max_size=5), priors)
def test_one_seed_says_nothing_against_the_prior(cells, prior):
    spread = pooled_spread(cells, prior=prior)
    assert spread.sd == pytest.approx(prior, **to_rounding)
    assert (spread.df, spread.cells) == (4, sum(map(len, cells)))


@given(tables, priors, st.integers(0, 6))
def test_a_cell_without_runs_counts_for_nothing(cells, prior, at):
    assert pooled_spread([*cells[:at], [], *cells[at:]], prior=prior) == pooled_spread(cells, prior=prior)


@given(tables, priors, st.randoms(use_true_random=False))
def test_the_order_of_cells_and_of_seeds_does_not_matter_but_for_rounding(cells, prior, random):
    shuffled = [random.sample(cell, len(cell)) for cell in random.sample(cells, len(cells))]
    one, other = pooled_spread(cells, prior=prior), pooled_spread(shuffled, prior=prior)
    assert other.sd == pytest.approx(one.sd, **to_rounding)
    assert (other.df, other.cells) == (one.df, one.cells)


@given(tables, priors, st.floats(-50, 50))
def test_how_good_a_network_is_does_not_change_the_spread(cells, prior, shift):
    moved = [[value + shift for value in cells[0]], *cells[1:]]
    assert pooled_spread(moved, prior=prior).sd == pytest.approx(
        pooled_spread(cells, prior=prior).sd, rel=1e-6
    )


@given(tables, priors)
def test_the_spread_lies_between_the_prior_and_that_of_the_runs_alone(cells, prior):
    freedoms = sum(len(cell) - 1 for cell in cells)
    assume(freedoms)
    alone = sqrt(sum((len(cell) - 1) * np.var(cell, ddof=1) for cell in cells if len(cell) > 1) / freedoms)
    low, high = sorted([prior, alone])
    assert low * (1 - 1e-9) <= pooled_spread(cells, prior=prior).sd <= high * (1 + 1e-9)


@given(st.integers(1, 20), st.integers(1, 9))
def test_more_seeds_add_a_degree_of_freedom_for_each_cell_and_seed_after_the_first(cells, seeds):
    expected = pooled_spread([[80.0] * seeds] * cells, prior=0.15).df
    assert Spread(sd=0.3, df=4, cells=cells).with_seeds(seeds) == Spread(sd=0.3, df=expected, cells=cells)


@given(st.integers(1, 4), st.integers(0, 2**32))
def test_arrays_of_simulated_tables_give_what_each_table_gives_alone(seeds, seed):
    tables = np.random.default_rng(seed).normal(80, 0.2, (3, seeds, 5))  # cells, seeds, tables
    spread = pooled_spread(tables, prior=0.15)
    gain = contrast([(1, tables[0]), (-1, tables[1])], spread)
    difference = difference_from_print(tables[0], 80.1, spread, rounding=0.1)
    for i in range(5):
        alone = pooled_spread(tables[:, :, i].tolist(), prior=0.15)
        assert spread.sd[i] == pytest.approx(alone.sd, **to_rounding)
        for many, one in (
            (gain, contrast([(1, tables[0, :, i]), (-1, tables[1, :, i])], alone)),
            (difference, difference_from_print(tables[0, :, i], 80.1, alone, rounding=0.1)),
        ):
            assert (many.value[i], many.error[i]) == pytest.approx((one.value, one.error), **to_rounding)
            assert many.p_above(0.0)[i] == pytest.approx(one.p_above(0.0), rel=1e-6)
            assert many.df == one.df


# --- estimates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "level", "quantile"),  # from a printed table of Student's t
    [
        (1, 0.95, 6.314),
        (4, 0.95, 2.132),
        (20, 0.95, 1.725),
        (36, 0.95, 1.688),
        (4, 0.975, 2.776),
        (20, 0.975, 2.086),
    ],
)
def test_bounds_are_students(df, level, quantile):
    estimate = Estimate(value=0.6, error=0.1, df=df)
    assert estimate.lower(level) == pytest.approx(0.6 - 0.1 * quantile, abs=1e-4)
    assert estimate.upper(level) == pytest.approx(0.6 + 0.1 * quantile, abs=1e-4)
    assert estimate.p_above(0.6 - 0.1 * quantile) == pytest.approx(1 - level, abs=1e-4)
    assert estimate.p_below(0.6 + 0.1 * quantile) == pytest.approx(1 - level, abs=1e-4)


@given(estimates, st.floats(-2, 2))
def test_a_p_value_is_small_where_the_bound_is_passed(estimate, bound):
    assume(clear_of(estimate, bound))
    assert (estimate.p_above(bound) <= ALPHA) == (estimate.lower(0.95) > bound)
    assert (estimate.p_below(bound) <= ALPHA) == (estimate.upper(0.95) < bound)
    assert estimate.p_above(bound) + estimate.p_below(bound) == pytest.approx(1)


@given(estimates, st.floats(0.5, 0.999), st.floats(0.5, 0.999))
def test_more_confidence_needs_a_wider_interval(estimate, one, other):
    low, high = sorted([one, other])
    assert estimate.lower(high) <= estimate.lower(low) <= estimate.value
    assert estimate.value <= estimate.upper(low) <= estimate.upper(high)


# --- a printed number ----------------------------------------------------------------------


def test_the_papers_own_run_and_its_rounding_are_part_of_the_error():
    spread = Spread(sd=0.15, df=36, cells=16)
    difference = difference_from_print([72.0, 72.4], 71.8, spread, rounding=0.1)
    assert difference.value == pytest.approx(0.4)
    assert difference.error == pytest.approx(sqrt(0.15**2 / 2 + 0.15**2 + 0.1**2 / 12))
    assert difference.df == 36


@pytest.mark.parametrize(
    ("value", "error", "word"),  # the interval is value -+ 1.7247 error, the margin 0.5
    [
        (0.0, 0.1, "reproduced"),
        (0.32, 0.1, "reproduced"),
        (0.33, 0.1, "undecided"),
        (0.67, 0.1, "undecided"),
        (0.68, 0.1, "above"),
        (-0.32, 0.1, "reproduced"),
        (-0.33, 0.1, "undecided"),
        (-0.67, 0.1, "undecided"),
        (-0.68, 0.1, "below"),
        (0.0, 0.28, "reproduced"),
        (0.0, 0.30, "undecided"),  # the interval holds the margin
    ],
)
def test_words_for_numbers(value, error, word):
    assert number_word(Estimate(value=value, error=error, df=20), delta=0.5) == word


@given(estimates, st.floats(0.01, 1))
def test_a_number_is_reproduced_if_both_one_sided_tests_say_so(estimate, delta):
    assume(clear_of(estimate, delta, -delta))
    within, word = StaysWithin(delta=delta), number_word(estimate, delta=delta)
    assert (word == "reproduced") == (within.p(estimate) <= ALPHA)
    assert (word in ("below", "above")) == (within.p_contrary(estimate) <= ALPHA)


@given(estimates, st.floats(0.01, 1))
def test_below_and_above_are_mirror_images(estimate, delta):
    mirror = Estimate(value=-estimate.value, error=estimate.error, df=estimate.df)
    swapped = {"below": "above", "above": "below"}
    word = number_word(estimate, delta=delta)
    assert number_word(mirror, delta=delta) == swapped.get(word, word)


@given(tables, points, priors, st.floats(-50, 50))
def test_printed_and_values_may_move_together(cells, printed, prior, shift):
    def difference(shift):
        moved = [[value + shift for value in cell] for cell in cells]
        return difference_from_print(
            moved[0], printed + shift, pooled_spread(moved, prior=prior), rounding=0.1
        )

    here, there = difference(0), difference(shift)
    assert (there.value, there.error) == pytest.approx((here.value, here.error), rel=1e-6, abs=1e-9)
    assume(clear_of(here, -0.5, 0.5))
    assert number_word(there, delta=0.5) == number_word(here, delta=0.5)


@given(tables, points, priors, sizes, st.floats(0.01, 2), st.integers(-7, 7))
def test_another_unit_changes_no_word(cells, printed, prior, size, delta, power):
    """Exactly: the factors are powers of two, with which nothing rounds otherwise."""

    def words(factor):
        scaled = [[factor * value for value in cell] for cell in cells]
        spread = pooled_spread(scaled, prior=factor * prior)
        difference = difference_from_print(scaled[0], factor * printed, spread, rounding=factor * 0.1)
        gain = contrast([(1, scaled[0]), (-1, scaled[1])], spread)
        exceeds = Exceeds(bound=factor * 0.1, size=None if size is None else factor * (0.1 + size))
        within = StaysWithin(delta=factor * delta)
        return (
            number_word(difference, delta=factor * delta),
            *(question.p(gain) for question in (exceeds, within)),
            *(word_of(question, gain) for question in (exceeds, within)),
            seeds_for_number(difference.value, spread, rounding=factor * 0.1, delta=factor * delta),
            *(
                seeds_for_claim(gain.value, [1, -1], spread, question, claims=3)
                for question in (exceeds, within)
            ),
        )

    assert words(2.0**power) == words(1.0)


# --- a contrast ----------------------------------------------------------------------------


def test_a_contrast_weighs_means_and_their_variances():
    cells = [(1, [80.0, 81.0]), (-0.5, [79.0]), (-0.5, [78.0, 78.2, 78.4])]
    estimate = contrast(cells, Spread(sd=0.15, df=36, cells=16))
    assert estimate.value == pytest.approx(80.5 - 39.5 - 39.1)
    assert estimate.error == pytest.approx(0.15 * sqrt(1 / 2 + 0.25 / 1 + 0.25 / 3))
    assert estimate.df == 36


@given(
    st.lists(st.tuples(st.sampled_from([1, -1, 0.5]), runs), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_the_order_of_terms_and_seeds_does_not_matter_but_for_rounding(terms, random):
    spread = Spread(sd=0.15, df=36, cells=16)
    shuffled = [(c, random.sample(cell, len(cell))) for c, cell in random.sample(terms, len(terms))]
    one, other = contrast(terms, spread), contrast(shuffled, spread)
    assert (other.value, other.error) == pytest.approx((one.value, one.error), rel=1e-9, abs=1e-9)


@given(coefficients, spreads, st.integers(1, 30))
def test_a_seed_more_narrows_every_interval_at_equal_spread(coefficients, spread, seeds):
    def intervals(seeds):
        known = spread.with_seeds(seeds)
        return (
            width(contrast([(c, [80.0] * seeds) for c in coefficients], known)),
            width(difference_from_print([80.0] * seeds, 80.0, known, rounding=0.1)),
        )

    assert all(more < fewer for more, fewer in zip(intervals(seeds + 1), intervals(seeds), strict=True))


@given(tables, priors)
def test_every_run_twice_narrows_the_interval_of_a_contrast(cells, prior):
    """Though the spread itself may grow: the prior counts for less then."""

    def gain(cells):
        return contrast([(1, cells[0]), (-1, cells[1])], pooled_spread(cells, prior=prior))

    assert width(gain([2 * cell for cell in cells])) < width(gain(cells))


@pytest.mark.parametrize(
    ("question", "value", "error", "word"),  # 36 degrees of freedom: the bounds are value -+ 1.6883 error
    [
        (Exceeds(), 0.17, 0.1, "holds"),
        (Exceeds(), 0.16, 0.1, "undecided"),
        (Exceeds(), -0.16, 0.1, "undecided"),
        (Exceeds(), -0.17, 0.1, "contradicted"),
        (Exceeds(size=0.6), 0.6, 0.1, "holds"),
        (Exceeds(size=0.6), 0.16, 0.1, "undecided"),
        (Exceeds(size=0.6), 0.14, 0.1, "undecided"),
        (Exceeds(size=0.6), 0.13, 0.1, "contradicted"),  # though it may well be above 0
        (Exceeds(size=0.6), 0.22, 0.05, "holds"),
        (Exceeds(size=0.6), 0.21, 0.05, "holds, smaller than half"),
        (Exceeds(bound=0.5), 0.67, 0.1, "holds"),
        (Exceeds(bound=0.5), 0.66, 0.1, "undecided"),
        (Exceeds(bound=0.5), 0.33, 0.1, "contradicted"),
        (Exceeds(bound=0.5, size=0.7), 0.43, 0.1, "contradicted"),  # half way from bound to size is 0.6
        (Exceeds(bound=0.5, size=0.7), 0.44, 0.1, "undecided"),
        (StaysWithin(delta=0.5), 0.33, 0.1, "holds"),
        (StaysWithin(delta=0.5), -0.34, 0.1, "undecided"),
        (StaysWithin(delta=0.5), 0.66, 0.1, "undecided"),
        (StaysWithin(delta=0.5), 0.67, 0.1, "contradicted"),
        (StaysWithin(delta=0.5), -0.67, 0.1, "contradicted"),
        (StaysWithin(delta=0.5), 0.0, 0.3, "undecided"),
    ],
)
def test_words_for_claims(question, value, error, word):
    assert word_of(question, Estimate(value=value, error=error, df=36)) == word


@pytest.mark.parametrize(
    ("p", "p_contrary", "word"),
    [
        (0.05, 0.051, "holds"),
        (0.05, 0.05, "holds, smaller than half"),
        (0.051, 0.05, "contradicted"),
        (0.051, 0.051, "undecided"),
    ],
)
def test_a_p_value_of_5_percent_is_small(p, p_contrary, word):
    assert claim_word(p, p_contrary) == word


@given(tables, priors, st.floats(0, 1), sizes, sizes)
def test_a_claim_and_its_reverse_never_both_hold(cells, prior, bound, size, reverse_size):
    spread = pooled_spread(cells, prior=prior)
    gain = contrast([(1, cells[0]), (-1, cells[1])], spread)
    reverse = contrast([(-1, cells[0]), (1, cells[1])], spread)
    words = [
        word_of(Exceeds(bound=bound, size=None if size is None else bound + size), gain),
        word_of(Exceeds(bound=bound, size=None if reverse_size is None else bound + reverse_size), reverse),
    ]
    assert sum(word.startswith("holds") for word in words) < 2


@given(estimates)
def test_without_a_size_a_claim_is_contradicted_where_its_reverse_holds(estimate):
    reverse = Estimate(value=-estimate.value, error=estimate.error, df=estimate.df)
    assert (word_of(Exceeds(), estimate) == "contradicted") == (word_of(Exceeds(), reverse) == "holds")


@given(estimates, st.floats(0, 1))
def test_what_stays_within_a_margin_is_not_contradicted_too_and_has_no_sign(estimate, delta):
    within = StaysWithin(delta=delta)
    mirror = Estimate(value=-estimate.value, error=estimate.error, df=estimate.df)
    assert word_of(within, estimate) == word_of(within, mirror) != "holds, smaller than half"


# --- Holm ----------------------------------------------------------------------------------


def test_holm_by_hand():
    # 4 x 0.005; 3 x 0.01; 2 x 0.03; 1 x 0.04 is less than what came before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(p_values)
def test_holm_is_the_closed_test_of_bonferroni(values):
    """A claim is rejected if all intersections with others are; its p-value is the largest of theirs."""
    everything = range(len(values))
    groups = [group for size in everything for group in combinations(everything, size + 1)]
    expected = [
        max(min(1.0, len(group) * min(values[k] for k in group)) for group in groups if i in group)
        for i in everything
    ]
    assert holm(values) == expected


@given(p_values)
def test_adjusted_p_values_are_probabilities_no_smaller_than_raw_and_in_their_order(values):
    adjusted = holm(values)
    assert all(raw <= corrected <= 1 for raw, corrected in zip(values, adjusted, strict=True))
    in_order = [corrected for _, corrected in sorted(zip(values, adjusted, strict=True))]
    assert all(first <= second for first, second in pairwise(in_order))


@given(p_values, st.randoms(use_true_random=False))
def test_each_claim_keeps_its_adjusted_p_value_in_any_order(values, random):
    order = random.sample(range(len(values)), len(values))
    assert holm([values[i] for i in order]) == [holm(values)[i] for i in order]


@given(p_values, st.floats(0, 1))
def test_a_claim_more_never_makes_another_more_certain(values, more):
    assert all(new >= old for new, old in zip(holm([*values, more]), holm(values), strict=False))


# --- how many seeds would decide -----------------------------------------------------------

SEEDS = np.arange(1, MOST_SEEDS + 1)


def fewest(decided):
    """The smallest number of seeds in a list of whether each would decide."""
    return int(SEEDS[decided][0]) if decided.any() else None


# A bound is put just beyond a border (or just short of it) at some number of seeds: plain random values are mostly
# decided by one seed or by none.
just_decides = st.integers(1, 40)
sides = st.sampled_from([-1.001, 1.001])


@given(
    just_decides, sides, st.sampled_from([-1, 1]), spreads, st.sampled_from([0.01, 0.1]), st.floats(0.05, 2)
)
def test_seeds_for_a_number_are_the_fewest_that_decide(seeds, side, sign, spread, rounding, delta):
    half = student_t.ppf(0.95, 4 + spread.cells * (SEEDS - 1)) * np.sqrt(
        spread.sd**2 / SEEDS + spread.sd**2 + rounding**2 / 12
    )
    difference = sign * (delta + side * half[seeds - 1])
    decided = (abs(difference) + half < delta) | (abs(difference) - half > delta)
    assert seeds_for_number(difference, spread, rounding=rounding, delta=delta) == fewest(decided)


@given(just_decides, sides, coefficients, spreads, questions, st.integers(1, 9))
def test_seeds_for_a_claim_are_the_fewest_that_decide(seeds, side, coefficients, spread, question, claims):
    df, error = 4 + spread.cells * (SEEDS - 1), spread.sd * np.sqrt(sum(c**2 for c in coefficients) / SEEDS)
    first_level, level = (student_t.ppf(p, df) * error for p in (1 - 0.05 / claims, 0.95))
    match question:
        case Exceeds(bound=bound, size=size):
            half = bound if size is None else (bound + size) / 2
            value = bound + first_level[seeds - 1] * side if side > 0 else half + level[seeds - 1] * side
            decided = (value - first_level > bound) | (value + level < half)
        case StaysWithin(delta=delta):
            value = delta + (level if side > 0 else first_level)[seeds - 1] * side
            decided = (abs(value) + first_level < delta) | (abs(value) - level > delta)
    assert seeds_for_claim(value, coefficients, spread, question, claims=claims) == fewest(decided)


def test_some_questions_are_decided_by_one_seed_and_some_never():
    spread = Spread(sd=0.15, df=36, cells=16)
    assert seeds_for_claim(2.0, [1, -1], spread, Exceeds(), claims=1) == 1
    assert seeds_for_claim(0.0, [1, -1], spread, Exceeds(), claims=1) is None
    assert seeds_for_number(5.0, spread, rounding=0.1, delta=0.5) == 1
    # the paper's own run stays one run, so that no number of ours makes up for it
    assert seeds_for_number(0.0, Spread(sd=0.4, df=36, cells=16), rounding=0.1, delta=0.5) is None


# --- two networks, image by image ----------------------------------------------------------


def packed(right):
    """As records hold it."""
    return np.packbits(right).tobytes().hex()


@st.composite
def two_networks(draw):
    """Which images each of two networks got right."""
    images = draw(st.integers(1, 40))
    which = st.lists(st.booleans(), min_size=images, max_size=images)
    return draw(which), draw(which)


@given(two_networks())
def test_agreement_counts_every_image_once(networks):
    pairs = list(zip(*networks, strict=True))
    compared = agreement(*map(packed, networks), images=len(pairs))
    assert compared == Agreement(
        both=pairs.count((True, True)),
        first=pairs.count((True, False)),
        second=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )
    assert compared.disagreement == 100 * sum(a != b for a, b in pairs) / len(pairs)


@given(two_networks())
def test_agreement_is_symmetric(networks):
    first, second = map(packed, networks)
    there, back = (agreement(*pair, images=len(networks[0])) for pair in ((first, second), (second, first)))
    assert (back.both, back.first, back.second, back.neither) == (
        there.both,
        there.second,
        there.first,
        there.neither,
    )
    assert (back.disagreement, back.mcnemar) == (there.disagreement, there.mcnemar)


@given(two_networks())
def test_a_network_agrees_with_itself(networks):
    compared = agreement(packed(networks[0]), packed(networks[0]), images=len(networks[0]))
    assert (compared.disagreement, compared.mcnemar) == (0, 1)


@pytest.mark.parametrize(("first", "second"), [("c000", "a0"), ("c0", "a000"), ("", "a0"), ("c0c0", "a0a0")])
def test_records_of_other_images_are_refused(first, second):
    with pytest.raises(ValueError, match="for 4 images: these records do not belong together"):
        agreement(first, second, images=4)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 100))
def test_mcnemar_is_the_exact_binomial_test_and_ignores_images_that_say_nothing(first, second, alike):
    differing = first + second
    tail = sum(comb(differing, k) for k in range(min(first, second) + 1)) / 2**differing
    compared = Agreement(both=alike, first=first, second=second, neither=3 * alike)
    assert compared.mcnemar == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_by_hand():
    compared = Agreement(both=30, first=2, second=10, neither=58)
    assert compared.disagreement == 12
    assert compared.mcnemar == pytest.approx(2 * (1 + 12 + 66) / 4096)


def test_mcnemar_at_the_size_of_imagenet():
    """5,500 of 50,000 images differ; the normal distribution is as good as exact there."""
    compared = Agreement(both=34000, first=2850, second=2650, neither=10500)
    z = (2850 - 2650 - 1) / sqrt(5500)  # with the correction for continuity
    assert compared.mcnemar == pytest.approx(2 * student_t.sf(z, 10**9), rel=1e-3)
