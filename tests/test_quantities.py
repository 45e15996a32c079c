"""Numbers of the learning process on evolutions made by hand, whose answers are known."""

from math import exp, log, sqrt

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from dcvit.quantities import KINDS, PROCESS, in_words, kind_of, periods, value
from reproductions.all_tables import TABLES
from tests.helpers import record_of, tiny

RECIPE = tiny()
PARTS = 100  # of a histogram


def measure(metric, evolution, probe=None, **changes):
    return value(record_of(RECIPE, 0, 70.0, evolution=evolution, **changes), probe, metric)


def histogram(**parts):
    """100 counts, all 0 but for those named: part_90=5."""
    counts = [0] * PARTS
    for name, count in parts.items():
        counts[int(name.removeprefix("part_"))] = count
    return counts


# --- borders of the periods ----------------------------------------------------------------

# Easy samples rise as a logistic curve around CENTRE, hard ones fall by as much. Its slope is a quarter of its peak's
# where exp(x) = (1 + sqrt(3/4)) / (1 - sqrt(3/4)), x in units of WIDTH to both sides of CENTRE; between these borders
# it rises by sqrt(3/4).
EPOCHS, CENTRE, WIDTH = 200, 60, 10
BORDER = WIDTH * log((1 + sqrt(0.75)) / (1 - sqrt(0.75)))  # 26.3 epochs


def logistic(shift=0.0, *, centre=CENTRE):
    return 1 / (1 + np.exp(-(np.arange(1, EPOCHS + 1) - centre - shift) / WIDTH))


def entries(easy, hard, histograms=None):
    return [
        {"easy": float(a), "hard": float(b), **({} if histograms is None else {"histogram": histograms[i]})}
        for i, (a, b) in enumerate(zip(easy, hard, strict=True))
    ]


@pytest.mark.parametrize("centre", [50, 60, 90])
def test_borders_are_where_the_slope_is_a_quarter_of_its_peak_in_percent_of_training(centre):
    curve = entries(logistic(centre=centre), 1 - logistic(centre=centre))
    assert measure("formation_end", curve) == pytest.approx(100 * (centre - BORDER) / EPOCHS, abs=0.75)
    assert measure("exploration_start", curve) == pytest.approx(100 * (centre + BORDER) / EPOCHS, abs=0.75)


def test_the_growth_rate_is_the_log_of_the_mean_slope_between_the_borders_a_training():
    curve = entries(logistic(), 1 - logistic())
    slope = sqrt(0.75) / (2 * BORDER)  # share an epoch
    assert measure("log_growth_rate", curve) == pytest.approx(log(slope * EPOCHS), abs=0.04)


def test_a_run_whose_samples_change_half_as_much_grows_half_as_fast():
    whole, half = (
        measure("log_growth_rate", entries(0.5 + size * (logistic() - 0.5), 0.5 - size * (logistic() - 0.5)))
        for size in (1.0, 0.5)
    )
    assert whole - half == pytest.approx(log(2), abs=1e-3)


def test_shifts_are_those_of_the_borders_when_the_thresholds_become_stricter():
    """Above 0.9, and below 0.1, samples change as above 0.8 and below 0.3, SHIFT epochs later."""
    shift = 12
    fewer = exp(-shift / WIDTH)  # so that at no time more samples are below 0.1 than below 0.3
    easy, easier = logistic(), logistic(shift)
    hard, harder = 1 - logistic(), fewer * (1 - logistic(shift))
    shares = (harder, hard - harder, np.zeros(EPOCHS), easy - easier, easier)
    assert min(share.min() for share in shares) >= -1e-12
    places = ("part_9", "part_10", "part_50", "part_89", "part_90")  # those beside the thresholds
    histograms = [
        histogram(
            **{place: max(0, round(1e6 * share[epoch])) for place, share in zip(places, shares, strict=True)}
        )
        for epoch in range(EPOCHS)
    ]
    curve = entries(easy, hard, histograms)
    assert measure("formation_shift", curve) == pytest.approx(100 * shift / EPOCHS, abs=0.5)
    assert measure("exploration_shift", curve) == pytest.approx(100 * shift / EPOCHS, abs=0.5)
    found = periods(record_of(RECIPE, 0, 70.0, evolution=curve), easy_above=0.9, hard_below=0.1)
    assert found.formation_end == pytest.approx((CENTRE + shift - BORDER) / EPOCHS, abs=0.0075)


BORDERS = ("formation_end", "exploration_start", "formation_shift", "exploration_shift", "log_growth_rate")


@pytest.mark.parametrize("metric", BORDERS)
@pytest.mark.parametrize(
    "curve",
    [
        pytest.param(entries([0.1] * 30, [0.5] * 30, [[1] * PARTS] * 30), id="nothing changes"),
        pytest.param(entries([0.1] * 5, [0.5] * 5, [[1] * PARTS] * 5), id="too short for periods"),
    ],
)
def test_a_run_without_a_growth_period_has_no_borders_and_no_rate(curve, metric):
    assert measure(metric, curve) is None


def test_no_shift_is_found_where_only_the_stricter_thresholds_show_no_growth():
    curve = entries(logistic(), 1 - logistic(), [histogram(part_50=10)] * EPOCHS)
    assert measure("formation_end", curve) is not None
    assert measure("formation_shift", curve) is None


# --- late in training ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "late"),
    [(300, 250), (30, 25), (25, 21), (6, 5), (2, 2), (1, 1)],  # the paper's 250th of 300, rounded
)
def test_late_is_five_sixths_of_training(epochs, late):
    curve = [{"hard": epoch / 1000} for epoch in range(1, epochs + 1)]
    assert measure("late_hard", curve) == pytest.approx(100 * late / 1000)


def test_the_rises_are_from_five_sixths_to_the_last_epoch_in_points():
    curve = [{"easy": epoch / 100, "top1": 50 + epoch / 10} for epoch in range(1, 31)]
    assert measure("end_easy_rise", curve) == pytest.approx(5.0)  # points of share
    assert measure("end_top1_rise", curve) == pytest.approx(0.5)  # points of top-1
    falling = [{"easy": 1 - epoch / 100, "top1": -epoch} for epoch in range(1, 31)]
    assert measure("end_easy_rise", falling) == pytest.approx(-5.0)
    assert measure("end_top1_rise", falling) == pytest.approx(-5.0)


@pytest.mark.parametrize(
    ("part", "easy", "hard"),
    [  # part i counts scores in (i / 100, (i + 1) / 100]
        (0, 0, 100),
        (9, 0, 100),
        (10, 0, 0),
        (50, 0, 0),
        (89, 0, 0),
        (90, 100, 0),
        (99, 100, 0),
    ],
)
def test_stricter_thresholds_are_read_off_the_histogram_at_their_parts(part, easy, hard):
    curve = [{"histogram": histogram(**{f"part_{part}": 7})}]
    assert measure("late_easy_at_0.9", curve) == pytest.approx(easy)
    assert measure("late_hard_at_0.1", curve) == pytest.approx(hard)


def test_the_histogram_is_that_of_the_late_epoch():
    early = histogram(part_0=1)
    curve = [{"histogram": early}] * 4 + [
        {"histogram": histogram(part_95=1, part_50=3)},
        {"histogram": early},
    ]
    assert measure("late_easy_at_0.9", curve) == pytest.approx(25)
    assert measure("late_hard_at_0.1", curve) == pytest.approx(0)


@given(st.lists(st.integers(0, 1000), min_size=PARTS, max_size=PARTS).filter(any))
def test_easy_and_hard_at_stricter_thresholds_are_shares_and_leave_the_middle(counts):
    curve = [{"histogram": counts}]
    easy, hard = measure("late_easy_at_0.9", curve), measure("late_hard_at_0.1", curve)
    middle = 100 * sum(counts[10:90]) / sum(counts)
    assert 0 <= easy <= 100
    assert easy + middle + hard == pytest.approx(100)


# --- the difficulty probe ------------------------------------------------------------------


def looked(random_erasing, patch_erasing):
    """An epoch with a look; shares of easy and hard samples under each erasing."""
    names = ("easy", "hard")
    return {
        "probe": {
            "clean": {"easy": 0.9, "moderate": 0.1, "hard": 0.0},
            "random_erasing": dict(zip(names, random_erasing, strict=True)),
            "patch_erasing": dict(zip(names, patch_erasing, strict=True)),
        }
    }


def test_probe_differences_are_means_over_the_looks_in_points():
    curve = [{}, looked((0.50, 0.20), (0.40, 0.22)), {}, looked((0.60, 0.10), (0.30, 0.16))]
    assert measure("easy_drop", curve) == pytest.approx((10 + 30) / 2)
    assert measure("hard_rise", curve) == pytest.approx((2 + 6) / 2)


@pytest.mark.parametrize("metric", ["easy_drop", "hard_rise"])
def test_without_a_look_there_is_no_difference(metric):
    assert measure(metric, [{"easy": 0.5, "hard": 0.1}] * 3) is None


# --- time ----------------------------------------------------------------------------------


def test_the_time_of_an_epoch_is_the_log_of_the_median():
    """A pause in the middle of training, or a slow first epoch, costs nothing."""
    curve = [{"seconds": seconds} for seconds in (500.0, 2.0, 3.0, 4.0, 2.5)]
    assert measure("log_epoch_seconds", curve) == pytest.approx(log(3))


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=9), st.floats(0.5, 2))
def test_a_machine_that_is_slower_by_a_factor_adds_its_log(seconds, factor):
    slow = [{"seconds": factor * value} for value in seconds]
    difference = measure("log_epoch_seconds", slow) - measure(
        "log_epoch_seconds", [{"seconds": value} for value in seconds]
    )
    assert difference == pytest.approx(log(factor), abs=1e-9)


# --- accuracies and the patch probe --------------------------------------------------------


def test_accuracies_are_of_the_last_epoch_or_of_the_best():
    record = record_of(RECIPE, 0, 70.0, top5=90.0, best=71.0)
    assert (value(record, None, "top1"), value(record, None, "top5")) == (70.0, 90.0)
    assert value(record, None, "top1", which="best") == 71.0


def test_scores_of_the_patch_probe_are_those_of_the_probe_and_none_without_one():
    record = record_of(RECIPE, 0, 70.0)
    assert value(record, {"attended/10/p": 0.64}, "attended/10/p") == 0.64
    assert value(record, None, "attended/10/p") is None


# --- names ---------------------------------------------------------------------------------

DECLARED = sorted(
    {cell.metric for table in TABLES for cell in table.cells}
    | {
        cell.metric
        for table in TABLES
        for claim in table.claims
        for part in claim.parts
        for _, cell in part.terms
    }
)


@pytest.mark.parametrize("metric", DECLARED)
def test_every_declared_number_has_a_kind_and_words(metric):
    assert kind_of(metric) in KINDS.values()
    assert in_words(metric)


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("top1", "top1"),
        ("attended/10/top1", "top1"),
        ("attended/10/top1_loss", "top1"),
        ("least/1/p", "p"),
        ("random/5/p_loss", "p"),
        ("top5", "top5"),
        ("formation_shift", "border"),
        ("late_hard_at_0.1", "share"),
        ("end_top1_rise", "top1"),
        ("log_growth_rate", "log_rate"),
        ("log_epoch_seconds", "log_time"),
    ],
)
def test_the_kind_is_that_of_the_last_part_of_the_name(metric, kind):
    assert kind_of(metric) is KINDS[kind]


def test_all_process_numbers_are_told_apart_by_their_words():
    assert len({in_words(metric) for metric in PROCESS}) == len(PROCESS)


def test_only_times_are_bound_to_a_device_and_what_the_paper_prints_has_a_margin():
    assert [name for name, kind in KINDS.items() if kind.one_device] == ["log_time"]
    printed = {cell.metric for table in TABLES for cell in table.cells if cell.paper is not None}
    assert all(kind_of(metric).delta is not None for metric in printed)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("top1", "top-1"),
        ("attended/1/top1", "top-1, 1 most attended patches erased"),
        ("least/10/p_loss", "p_k lost, 10 least attended patches erased"),
        ("late_easy_at_0.9", "easy samples above 0.9 at 5/6 of training"),
    ],
)
def test_a_number_in_words(metric, words):
    assert in_words(metric) == words


UNKNOWN = ["top2", "late_moderate", "attended/10/top2", "", "formation_end/x"]


@pytest.mark.parametrize("metric", UNKNOWN)
def test_an_unknown_number_is_a_key_error(metric):
    with pytest.raises(KeyError):
        kind_of(metric)
    with pytest.raises(KeyError):
        in_words(metric)
    with pytest.raises(KeyError):
        value(record_of(RECIPE, 0, 70.0), {}, metric)


@pytest.mark.parametrize("name", ["border", "share", "log_rate", "log_time"])
def test_the_name_of_a_kind_is_not_the_name_of_a_number(name):
    with pytest.raises(KeyError):
        kind_of(name)
