"""What a record's evolution says: proportions under any threshold, fits, periods, means over seeds, looks."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from dcvit.assimilation import find_periods, fit_proportions
from dcvit.curves import (
    evolution,
    evolution_of,
    looks,
    mean_evolution,
    mean_of,
    period_values,
    proportions,
)
from dcvit.difficulty import count_by_difficulty, top_score_histogram
from tests.helpers import record_of, tiny

BORDER = 2.634  # a logistic curve's slope is a quarter of its peak at so many widths from the centre
WAYS = ("clean", "random_erasing", "patch_erasing")


def logistic(epochs, centre=0.3, width=0.05):
    """Share of easy samples, as fractions of training."""
    t = np.arange(1, epochs + 1) / epochs
    return 1 / (1 + np.exp(-(t - centre) / width))


def record(easy, hard, *, seed=0, recipe=None, **changes):
    """A made-up record with these shares."""
    evolution = [
        {"epoch": epoch, "easy": float(e), "hard": float(h)}
        for epoch, (e, h) in enumerate(zip(easy, hard, strict=True), start=1)
    ]
    return record_of(
        recipe or tiny(epochs=max(1, len(evolution))), seed, 70.0, **{"evolution": evolution, **changes}
    )


def counted(scores_EN, *, easy_above=0.8, hard_below=0.3):
    """A made-up record of runs whose top scores were these, counted as training does it."""
    entries = []
    for epoch, scores in enumerate(scores_EN, start=1):
        top = torch.tensor(scores, dtype=torch.float32)
        easy, _, hard = count_by_difficulty(top, easy_above=easy_above, hard_below=hard_below).tolist()
        entry = {"epoch": epoch, "easy": easy / len(top), "hard": hard / len(top)}
        entries.append({**entry, "histogram": top_score_histogram(top).tolist()})
    return record_of(tiny(easy_above=easy_above, hard_below=hard_below), 0, 70.0, evolution=entries)


# --- proportions ---------------------------------------------------------------------------


def test_without_thresholds_the_shares_are_those_of_the_record():
    easy, hard = proportions(record([0.1, 0.25], [0.9, 0.5]))
    assert (easy.tolist(), hard.tolist()) == ([0.1, 0.25], [0.9, 0.5])


scores = st.lists(
    st.lists(st.floats(1 / 128, 1, width=32) | st.integers(1, 100).map(lambda part: part / 100), min_size=1),
    min_size=1,
    max_size=4,
)
borders = st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted)


@given(scores, borders)
def test_shares_read_off_the_histogram_are_those_that_training_would_have_counted(scores_EN, bounds):
    """But for scores that equal the lower bound, which the histogram can't tell from lower ones."""
    hard_below, easy_above = (bound / 100 for bound in bounds)
    expected = counted(scores_EN, easy_above=easy_above, hard_below=hard_below)
    at_bound = [np.mean(np.float32(row) == np.float32(hard_below)) for row in scores_EN]
    easy, hard = proportions(counted(scores_EN), easy_above=easy_above, hard_below=hard_below)
    assert easy.tolist() == [entry["easy"] for entry in expected.evolution]
    np.testing.assert_allclose(hard - at_bound, [entry["hard"] for entry in expected.evolution], atol=1e-12)


@pytest.mark.parametrize("part", range(101))
def test_every_hundredth_can_be_a_threshold(part):
    run = counted([[(number + 0.5) / 100 for number in range(100)]])
    easy, hard = proportions(run, easy_above=part / 100, hard_below=part / 100)
    assert (easy.tolist(), hard.tolist()) == ([(100 - part) / 100], [part / 100])


def test_a_single_threshold_leaves_the_other_share_as_counted():
    run = counted([[0.05, 0.15, 0.5, 0.85, 0.95]])
    assert [share.tolist() for share in proportions(run, easy_above=0.9)] == [[0.2], [0.4]]
    assert [share.tolist() for share in proportions(run, hard_below=0.1)] == [[0.4], [0.2]]


@pytest.mark.parametrize("threshold", [0.755, -0.01, 1.01, float("nan")])
@pytest.mark.parametrize("name", ["easy_above", "hard_below"])
def test_a_threshold_between_two_parts_of_the_histogram_is_refused(name, threshold):
    thresholds = {"easy_above": 1.0, "hard_below": 0.0, name: threshold}
    with pytest.raises(ValueError, match=r"threshold (0\.755|-0\.01|1\.01|nan): .*|a sample would be both"):
        proportions(counted([[0.5]]), **thresholds)


def test_the_message_about_a_threshold_says_which_there_are():
    with pytest.raises(ValueError, match=r"threshold 0\.755: .* 100 parts of .* multiples of 0\.01"):
        proportions(counted([[0.5]]), easy_above=0.755)


@pytest.mark.parametrize(
    "thresholds", [dict(easy_above=0.2), dict(hard_below=0.9), dict(easy_above=0.4, hard_below=0.5)]
)
def test_thresholds_under_which_a_sample_could_be_easy_and_hard_are_refused(thresholds):
    with pytest.raises(ValueError, match="a sample would be both"):
        proportions(counted([[0.5]]), **thresholds)


def test_a_histogram_that_counts_nothing_is_refused_with_its_epoch():
    run = counted([[0.5], [0.5], [0.5]])
    run.evolution[1]["histogram"] = [0] * 100
    with pytest.raises(ValueError, match=f"run {run.run_id}: the histogram of epoch 2 counts no sample"):
        proportions(run, easy_above=0.9)


# --- one run -------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [25, 300])
def test_an_evolution_has_the_fits_the_rate_and_the_periods_of_its_shares(epochs):
    easy = logistic(epochs, width=0.08)
    hard = 0.9 * (1 - easy)
    found, fit = evolution(record(easy, hard)), fit_proportions(easy, hard)
    assert found.epochs.tolist() == list(range(1, epochs + 1))
    for ours, theirs in (
        (found.easy, easy),
        (found.hard, hard),
        (found.fitted_easy, fit.easy),
        (found.fitted_hard, fit.hard),
        (found.rate, fit.rate),
    ):
        assert np.array_equal(ours, theirs)
    assert (found.periods, found.reason) == (find_periods(easy, hard), "")


@pytest.mark.parametrize(("epochs", "needed"), [(0, 10), (1, 10), (9, 10)])
def test_a_run_too_short_for_the_fit_keeps_its_shares_and_says_how_many_epochs_it_lacks(epochs, needed):
    found = evolution(record(logistic(epochs), 1 - logistic(epochs)))
    assert len(found.easy) == len(found.hard) == len(found.epochs) == epochs
    assert (found.fitted_easy, found.fitted_hard, found.rate, found.periods) == (None,) * 4
    assert found.reason.startswith(f"{epochs} epochs: ")
    assert f"needs at least {needed}" in found.reason


def test_a_run_too_short_for_periods_has_a_rate_and_the_reason():
    found = evolution(record(logistic(10), 1 - logistic(10)))
    assert len(found.rate) == 10
    assert found.periods is None
    assert found.reason.startswith("10 epochs: the periods need at least 20")


def test_a_run_without_growth_has_a_rate_and_the_reason():
    easy = np.linspace(0, 0.3, 100)
    found = evolution(record(easy, 1 - easy))
    assert len(found.rate) == 100
    assert (found.periods, found.reason[:16]) == (None, "no growth period")


def test_what_is_no_share_is_an_error_and_no_reason():
    with pytest.raises(ValueError, match=r"easy is 70\.0 in epoch 25"):
        evolution(record([0.1] * 24 + [70.0], [0.5] * 25))


@pytest.mark.parametrize(
    ("epochs", "first", "last"), [(10, 2, 9), (25, 2, 24), (99, 2, 98), (100, 3, 98), (300, 7, 294)]
)
def test_the_steady_epochs_are_all_but_a_fiftieth_at_each_end(epochs, first, last):
    kept = (found := evolution_of(logistic(epochs), 1 - logistic(epochs))).epochs[found.steady]
    assert (kept[0], kept[-1]) == (first, last)


@given(centre=st.floats(0.25, 0.35), width=st.floats(0.05, 0.07), height=st.floats(0.3, 0.9))
def test_period_values_are_those_of_logistic_curves_in_closed_form(centre, width, height):
    """Both shares move by `height` in all, with a peak slope of height / (4 width) per training."""
    easy = height * logistic(300, centre, width)
    values = period_values(evolution_of(easy, 1 - easy))
    begin, end = centre - BORDER * width, centre + BORDER * width
    moved = height / (1 + np.exp(-BORDER)) - height / (1 + np.exp(BORDER))
    assert values.formation_end == pytest.approx(begin, abs=0.015)
    assert values.exploration_start == pytest.approx(end, abs=0.015)
    assert 300 * values.peak_rate == pytest.approx(height / (4 * width), rel=0.07)
    assert 300 * values.growth_rate == pytest.approx(moved / (end - begin), rel=0.03)
    assert values.growth_rate < values.peak_rate


def test_without_periods_there_are_no_values_of_them():
    assert period_values(evolution_of(logistic(9), 1 - logistic(9))) is None
    assert period_values(evolution_of(logistic(10), 1 - logistic(10))) is None


# --- several seeds -------------------------------------------------------------------------


def three_seeds(epochs=60, **entries):
    """Runs of one recipe; every value of an entry is that of the epoch and seed."""
    runs = []
    for seed, centre in enumerate((0.25, 0.3, 0.35)):
        easy = logistic(epochs, centre, 0.06)
        run = record(easy, 0.8 * (1 - easy), seed=seed)
        for entry in run.evolution:
            entry.update({name: value(entry["epoch"], seed) for name, value in entries.items()})
        runs.append(run)
    return runs


def test_the_mean_evolution_is_that_of_the_mean_shares():
    runs = three_seeds()
    easy, hard = (np.mean([proportions(run)[which] for run in runs], axis=0) for which in (0, 1))
    found, expected = mean_evolution(runs), evolution_of(easy, hard)
    assert np.array_equal(found.easy, easy)
    assert np.array_equal(found.hard, hard)
    assert found.periods == expected.periods == find_periods(easy, hard)
    assert np.array_equal(found.rate, expected.rate)
    assert found.periods not in [evolution(run).periods for run in runs]


def test_the_order_of_the_seeds_does_not_matter():
    forth, back = mean_evolution(three_seeds()), mean_evolution(three_seeds()[::-1])
    np.testing.assert_allclose(forth.easy, back.easy, rtol=1e-12)
    np.testing.assert_allclose(forth.rate, back.rate, rtol=1e-6)


def test_the_mean_of_one_run_is_the_run():
    (run, *_) = three_seeds()
    assert np.array_equal(mean_evolution([run]).rate, evolution(run).rate)


def test_the_mean_takes_thresholds():
    runs = [counted([[0.05, 0.95]]), replace(counted([[0.15, 0.85]]), seed=1)]
    found = mean_evolution(runs, easy_above=0.9, hard_below=0.1)
    assert (found.easy.tolist(), found.hard.tolist()) == ([0.25], [0.25])


def test_other_numbers_are_means_too():
    runs = three_seeds(epochs=4, loss=lambda epoch, seed: epoch + 10 * seed)
    assert mean_of(runs, "loss").tolist() == [11, 12, 13, 14]


@pytest.mark.parametrize("lost", ["absent", "none"])
def test_a_number_that_an_epoch_lacks_is_named_with_the_epoch(lost):
    runs = three_seeds(epochs=4, top1=lambda epoch, seed: 1.0)
    if lost == "absent":
        del runs[1].evolution[2]["top1"]
    else:
        runs[1].evolution[2]["top1"] = None
    with pytest.raises(ValueError, match=f"run {runs[1].run_id} has no top1 of epoch 3"):
        mean_of(runs, "top1")


SHARES = ([0.1] * 4, [0.5] * 4)
ALIKE = record(*SHARES)
OTHER_IMAGES = {**ALIKE.data, "fingerprint": "another"}


@pytest.mark.parametrize("mean", [mean_evolution, lambda runs: mean_of(runs, "easy"), looks])
@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "the mean of no runs"),
        ([record([], [])], "has no epochs"),
        (
            [ALIKE, record(*SHARES, recipe=tiny(epochs=4, drop_path=0.3))],
            r"of different recipes \(drop_path\)",
        ),
        ([ALIKE, record(*SHARES, data=OTHER_IMAGES)], "of different images"),
        (
            [ALIKE, record([0.1] * 3, [0.5] * 3, recipe=tiny(epochs=4))],
            r"of different lengths \(4 and 3 epochs\)",
        ),
    ],
)
def test_runs_that_have_no_mean_are_refused_with_the_reason(mean, runs, message):
    with pytest.raises(ValueError, match=message):
        mean(runs)


# --- looks ---------------------------------------------------------------------------------


def probed(seed, *, times=(2, 4)):
    """A run of four epochs, looked at after some."""
    run = record(*SHARES, seed=seed)
    for epoch in times:
        run.evolution[epoch - 1]["probe"] = {
            way: {"easy": (epoch + number + seed) / 10, "moderate": 0.0, "hard": (epoch - number + seed) / 20}
            for number, way in enumerate(WAYS)
        }
    return run


def test_looks_are_what_the_probe_saw_after_which_epochs():
    seen = looks([probed(0)])
    assert seen.epochs.tolist() == [2, 4]
    assert {way: shares.tolist() for way, shares in seen.easy.items()} == {
        "clean": [0.2, 0.4],
        "random_erasing": [0.3, 0.5],
        "patch_erasing": [0.4, 0.6],
    }
    assert {way: shares.tolist() for way, shares in seen.hard.items()} == {
        "clean": [0.1, 0.2],
        "random_erasing": [0.05, 0.15],
        "patch_erasing": [0.0, 0.1],
    }


def test_looks_of_several_seeds_are_means():
    seen = looks([probed(0), probed(2)])
    np.testing.assert_allclose(seen.easy["clean"], [0.3, 0.5])
    np.testing.assert_allclose(seen.hard["patch_erasing"], [0.05, 0.15])


def test_a_run_that_nothing_looked_at_is_named_with_what_to_do():
    blind = replace(probed(1, times=()), run_id="ab12")
    with pytest.raises(
        ValueError, match=r"run ab12 has no looks of the difficulty probe: train .* difficulty_probe"
    ):
        looks([probed(0), blind])
