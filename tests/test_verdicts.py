"""A made-up table whose runs and spreads are known: every word where the rule in `dcvit.statistics` puts it.

The rule is typed once more here, in `tests/test_statistics.py` it is tested by itself.
"""

from dataclasses import replace
from math import sqrt

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from dcvit.quantities import KINDS
from dcvit.statistics import Exceeds, StaysWithin
from dcvit.tables import Cell, Claim, Part, Results, Table, exceeds, more, stays_within
from dcvit.verdicts import interval, judge, wanted
from tests.helpers import record_of, tiny

ROWS = ("vanilla", "dynamic", "static")
RECIPES = {row: tiny(label_smoothing=i / 10) for i, row in enumerate(ROWS)}
PRINTED = {"vanilla": 70.0, "dynamic": 72.0, "static": 71.0}
CELLS = tuple(
    Cell(row=row, column="model", metric="top1", recipe=RECIPES[row], paper=PRINTED[row]) for row in ROWS
)
VANILLA, DYNAMIC, STATIC = CELLS
GAIN = more("dynamic over vanilla", DYNAMIC, VANILLA)  # the paper's numbers: +2
PRIOR = {"small": 1.0, "paper": 0.15}  # of top-1


def claim(*parts, name="claim"):
    return Claim(id=name, sentence="A sentence.", parts=parts)


def table_of(*claims, cells=CELLS):
    return Table(
        number=99, title="A made-up table", cells=cells, claims=claims, baseline="vanilla", chosen_here=()
    )


def results_of(values, *, scale="small", changes=None):
    """Results in which the row's runs ended at `values[row]`, one a seed; `changes(row, seed)`: more of its record."""
    records = [
        record_of(RECIPES[row], seed, value, **(changes(row, seed) if changes else {}))
        for row, ours in values.items()
        for seed, value in enumerate(ours)
        if value is not None
    ]
    return Results(
        scale=scale,
        images="some images",
        seeds=tuple(range(max((len(ours) for ours in values.values()), default=1))),
        twins={recipe: recipe for recipe in RECIPES.values()},
        records={record.run_id: record for record in records},
    )


def spread_of(values, prior):
    """The formula of the rule: s and its degrees of freedom, of lists of values."""
    squares = sum((value - np.mean(ours)) ** 2 for ours in values for value in ours)
    df = 4 + sum(len(ours) - 1 for ours in values if len(ours))
    return sqrt((4 * prior**2 + squares) / df), df


def one_word(part, values, *, scale="small", cells=CELLS):
    """The word of a table's only claim, which has one part."""
    (found,) = judge(table_of(claim(part), cells=cells), results_of(values, scale=scale)).claims
    return found.word


def around(mean, seeds, sd):
    """`seeds` values with exactly this mean and sample standard deviation."""
    if seeds == 1:
        return [mean]
    steps = np.arange(seeds) - (seeds - 1) / 2
    return list(mean + sd * steps / steps.std(ddof=1))


# --- claims --------------------------------------------------------------------------------


def test_a_claims_estimate_interval_and_p_are_those_of_the_formula():
    values = {"vanilla": [50.0, 51.0, 52.5], "dynamic": [54.0, 53.0], "static": [60.0, 60.5]}
    (found,) = judge(table_of(claim(GAIN)), results_of(values)).claims
    s, df = spread_of(values.values(), PRIOR["small"])
    estimate, error = np.mean(values["dynamic"]) - np.mean(values["vanilla"]), s * sqrt(1 / 2 + 1 / 3)
    (part,) = found.parts
    assert part.seeds == (2, 3)
    assert part.spread.sd == pytest.approx(s)
    assert (part.spread.df, part.spread.cells) == (df, 3) == (8, 3)
    assert part.estimate.value == pytest.approx(estimate)
    assert interval(part) == pytest.approx(
        (estimate - stdtrit(df, 0.95) * error, estimate + stdtrit(df, 0.95) * error)
    )
    assert part.p == pytest.approx(stdtr(df, -estimate / error))
    assert part.p_contrary == pytest.approx(stdtr(df, (estimate - 1.0) / error))  # half of the printed 2.0


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize(
    ("gain", "word"),
    [  # in standard errors of an interval's half: below 1 it reaches 0
        (1.01, "holds"),
        (0.99, "undecided"),
        (-0.99, "undecided"),
        (-1.01, "contradicted"),
    ],
)
def test_without_a_claimed_size_the_word_changes_where_the_interval_reaches_zero(scale, gain, word):
    part = Part(name="gain", terms=GAIN.terms, question=Exceeds())
    s, df = PRIOR[scale], 4 + 2 * 3
    half = stdtrit(df, 0.95) * s * sqrt(2 / 4)
    values = {"vanilla": around(50.0, 4, s), "dynamic": around(50.0 + gain * half, 4, s)}
    values["static"] = []
    assert one_word(part, values, scale=scale) == word


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize(
    ("above", "word"),
    [("both", "holds"), ("neither", "contradicted"), ("zero", "holds, smaller than half"), ("", "undecided")],
)
def test_with_a_claimed_size_the_bounds_are_zero_and_half_of_it(scale, above, word):
    s, df = PRIOR[scale], 4 + 2 * 9
    half = stdtrit(df, 0.95) * s * sqrt(2 / 10)
    # estimate in units of the interval's half, and half of the claimed size
    estimate, half_size = {"both": (1.5, 1.0), "neither": (0.5, 1.6), "zero": (1.1, 2.2), "": (0.5, 1.4)}[
        above
    ]
    part = Part(name="gain", terms=GAIN.terms, question=Exceeds(size=2 * half_size * half))
    values = {"vanilla": around(50.0, 10, s), "dynamic": around(50.0 + estimate * half, 10, s)}
    assert one_word(part, values, scale=scale) == word


@pytest.mark.parametrize(
    ("difference", "word"), [(0.0, "holds"), (2.0, "holds"), (-2.0, "holds"), (3.0, "undecided")]
)
def test_a_claim_of_equality_holds_within_its_margin_on_both_sides(difference, word):
    part = stays_within("equal", (1, DYNAMIC), (-1, VANILLA), delta=3.0)
    values = {"vanilla": around(50.0, 10, 1.0), "dynamic": around(50.0 + difference, 10, 1.0)}
    assert one_word(part, values) == word


@pytest.mark.parametrize("difference", [-4.0, 4.0])
def test_a_claim_of_equality_is_contradicted_on_either_side(difference):
    part = stays_within("equal", (1, DYNAMIC), (-1, VANILLA), delta=3.0)
    values = {"vanilla": around(50.0, 10, 1.0), "dynamic": around(50.0 + difference, 10, 1.0)}
    assert one_word(part, values) == "contradicted"


def test_a_claim_with_a_bound_is_about_that_bound():
    part = exceeds("loses less than two points", (1, DYNAMIC), (-1, VANILLA), size=3.0, bound=-2.0)
    values = {"vanilla": around(50.0, 20, 1.0), "dynamic": around(50.0, 20, 1.0)}
    better = {**values, "dynamic": around(50.8, 20, 1.0)}
    # the interval's half is 0.53; half way from -2.0 to 3.0 is 0.5
    assert one_word(part, better) == one_word(part, values) == "holds"
    assert one_word(part, {**values, "dynamic": around(49.9, 20, 1.0)}) == "holds, smaller than half"
    assert one_word(replace(part, question=Exceeds(bound=-2.0)), values) == "holds"
    assert one_word(replace(part, question=Exceeds(bound=0.0)), values) == "undecided"


def test_a_claims_p_is_the_largest_of_its_parts():
    other = more("static over vanilla", STATIC, VANILLA)
    values = {"vanilla": [50.0], "dynamic": [52.0], "static": [53.0]}
    (found,) = judge(table_of(claim(GAIN, other)), results_of(values)).claims
    assert found.parts[0].p > found.parts[1].p
    assert found.p == found.parts[0].p


def test_a_claim_holds_only_if_each_of_its_parts_does():
    other = more("static over vanilla", STATIC, VANILLA)
    seeds = 10
    values = {row: around(50.0, seeds, 1.0) for row in ROWS}
    values["dynamic"] = around(60.0, seeds, 1.0)
    values["static"] = around(50.3, seeds, 1.0)
    assert one_word(GAIN, values) == "holds"
    (found,) = judge(table_of(claim(GAIN, other)), results_of(values)).claims
    assert found.word == "undecided"


def test_n_parts_share_the_level_at_which_one_of_them_contradicts():
    """A part that contradicts with p = 0.03 does so alone; beside another that does not, 0.03 x 2 is too much."""
    s, df = PRIOR["small"], 4 + 3 * 9
    value = stdtrit(df, 0.03) * s * sqrt(2 / 10)
    values = {
        "vanilla": around(50.0, 10, s),
        "dynamic": around(50.0 + value, 10, s),
        "static": around(60.0, 10, s),
    }
    bad = Part(name="dynamic", terms=GAIN.terms, question=Exceeds())
    fine = Part(name="static", terms=((1, STATIC), (-1, VANILLA)), question=Exceeds())
    assert one_word(bad, values) == "contradicted"
    (found,) = judge(table_of(claim(bad, fine)), results_of(values)).claims
    assert found.parts[0].p_contrary == pytest.approx(0.03)
    assert found.word == "undecided"
    lower = {**values, "dynamic": [value - 0.2 for value in values["dynamic"]]}
    (found,) = judge(table_of(claim(bad, fine)), results_of(lower)).claims
    assert found.parts[0].p_contrary < 0.025
    assert found.word == "contradicted"


def test_all_declared_claims_are_corrected_for_whether_run_or_not():
    s, df = PRIOR["small"], 4 + 2 * 9
    value = -stdtrit(df, 0.02) * s * sqrt(2 / 10)
    values = {"vanilla": around(50.0, 10, s), "dynamic": around(50.0 + value, 10, s)}
    gain = Part(name="gain", terms=GAIN.terms, question=Exceeds())
    not_run = Part(name="static", terms=((1, STATIC), (-1, VANILLA)), question=Exceeds())
    assert one_word(gain, values) == "holds"
    both = judge(table_of(claim(gain, name="a"), claim(not_run, name="b")), results_of(values)).claims
    assert [found.word for found in both] == ["holds", "not run"]  # 0.02 x 2
    assert [found.p_holm for found in both] == pytest.approx([0.04, 1.0])
    three = [claim(gain, name="a"), claim(not_run, name="b"), claim(not_run, name="c")]
    assert [found.word for found in judge(table_of(*three), results_of(values)).claims] == [
        "undecided",  # 0.02 x 3
        "not run",
        "not run",
    ]


def test_a_claim_one_of_whose_runs_is_missing_is_not_run():
    other = more("static over vanilla", STATIC, VANILLA)
    values = {"vanilla": [50.0], "dynamic": [60.0], "static": []}
    (found,) = judge(table_of(claim(GAIN, other)), results_of(values)).claims
    assert (found.word, found.note, found.p, found.p_holm) == ("not run", "", 1.0, 1.0)
    assert [part.seeds for part in found.parts] == [(1, 1), (0, 1)]


def test_one_seed_says_little_instead_of_nothing():
    """At paper scale 0.6 points of one seed (sd 0.15, df 4) are enough, 0.4 are not."""
    half = stdtrit(4, 0.95) * 0.15 * sqrt(2)
    assert 0.4 < half < 0.6
    part = Part(name="gain", terms=GAIN.terms, question=Exceeds())
    for gain, word in ((0.4, "undecided"), (0.6, "holds")):
        assert one_word(part, {"vanilla": [70.0], "dynamic": [70.0 + gain]}, scale="paper") == word


# --- numbers -------------------------------------------------------------------------------


def numbers(values, *, scale="paper", cells=CELLS):
    return judge(table_of(cells=cells), results_of(values, scale=scale)).numbers


def test_a_numbers_estimate_and_interval_are_those_of_the_formula():
    values = {"vanilla": [70.1, 70.4], "dynamic": [72.0], "static": []}
    found = numbers(values)[VANILLA]
    s, df = spread_of(values.values(), PRIOR["paper"])
    assert (found.seeds, found.delta, found.spread.df) == (2, 0.5, df)
    assert found.estimate.value == pytest.approx(0.25)
    assert found.estimate.error == pytest.approx(sqrt(s**2 * (1 / 2 + 1) + 0.1**2 / 12))


@pytest.mark.parametrize(
    ("halves_from", "sign", "word"),
    [  # the mean lies so many halves of an interval from a margin of delta: inwards, or outwards
        (-1.05, 1, "reproduced"),
        (-1.05, -1, "reproduced"),
        (-0.95, 1, "undecided"),
        (0.95, -1, "undecided"),
        (1.05, 1, "above"),
        (1.05, -1, "below"),
    ],
)
def test_a_number_is_reproduced_below_or_above_where_the_interval_says_so(halves_from, sign, word):
    s, seeds = PRIOR["paper"], 10
    half = stdtrit(4 + seeds - 1, 0.95) * sqrt(s**2 * (1 / seeds + 1) + 0.1**2 / 12)
    difference = sign * (0.5 + halves_from * half)
    assert numbers({"vanilla": around(70.0 + difference, seeds, s)})[VANILLA].word == word


def test_the_rounding_is_that_of_the_printed_digits():
    coarse = replace(VANILLA, digits=0)
    values = {"vanilla": [70.0]}
    fine_error = numbers(values)[VANILLA].estimate.error
    coarse_error = numbers(values, cells=(coarse,))[coarse].estimate.error
    assert coarse_error**2 - fine_error**2 == pytest.approx((1 - 0.01) / 12)


def test_each_kind_of_number_has_its_own_margin():
    cells = tuple(
        replace(VANILLA, metric=metric, paper=paper, digits=digits)
        for metric, paper, digits in (("top1", 70.0, 1), ("top5", 95.0, 1), ("attended/1/p", 0.67, 2))
    )
    results = results_of({"vanilla": [70.0]}, scale="paper")
    (name,) = results.records
    found = judge(
        table_of(cells=cells), replace(results, patch_probes={name: {"attended/1/p": 0.671}})
    ).numbers
    assert [found[cell].delta for cell in cells] == [0.5, 0.25, 0.01]
    assert [found[cell].spread.sd for cell in cells] == pytest.approx([0.15, 0.07, 0.003])
    assert found[cells[2]].estimate.value == pytest.approx(0.001)


def test_numbers_are_compared_at_paper_scale_only_and_only_printed_ones():
    own = replace(STATIC, row="static", column="ours", paper=None, group="not in the paper")
    cells = (*CELLS, own)
    values = {"vanilla": [70.0], "dynamic": [], "static": [71.0]}
    found = numbers(values, scale="small", cells=cells)
    assert {cell.row: verdict.word for cell, verdict in found.items()} == {
        "vanilla": "not comparable",
        "dynamic": "not run",
        "static": "not comparable",
    }
    assert all(verdict.estimate is None for verdict in found.values())
    assert own not in found
    assert own not in numbers(values, scale="paper", cells=cells)


# --- scale smoke ---------------------------------------------------------------------------


def test_at_smoke_nothing_gets_a_verdict():
    values = {"vanilla": [40.0, 41.0], "dynamic": [90.0, 91.0], "static": []}
    other = more("static over vanilla", STATIC, VANILLA)
    table = table_of(claim(GAIN, name="a"), claim(other, name="b"))
    found = judge(table, results_of(values, scale="smoke"))
    assert [verdict.word for verdict in found.claims] == ["smoke", "smoke"]
    assert {found.numbers[cell].word for cell in (VANILLA, DYNAMIC)} == {"smoke"}
    assert found.spreads == {}
    parts = [part for verdict in found.claims for part in verdict.parts]
    assert all(part.estimate is None and part.p == part.p_contrary == 1.0 for part in parts)
    assert all(verdict.estimate is None for verdict in found.numbers.values())
    assert found.disappointing == []


# --- spreads -------------------------------------------------------------------------------


def test_the_spread_is_pooled_over_all_cells_of_the_table():
    values = {"vanilla": [70.0, 70.2, 70.4], "dynamic": [72.0], "static": [71.0, 71.4]}
    for scale, prior in PRIOR.items():
        spread = judge(table_of(), results_of(values, scale=scale)).spreads["top1"]
        s, df = spread_of(values.values(), prior)
        assert spread.sd == pytest.approx(s)
        assert (spread.df, spread.cells) == (df, 3) == (7, 3)


def test_two_cells_with_one_run_count_once():
    """The vanilla row may stand in a table twice, under two names; it is one set of runs."""
    again = replace(VANILLA, row="none", column="again")
    values = {"vanilla": [70.0, 71.0], "dynamic": [72.0], "static": []}
    once, twice = (
        judge(table_of(cells=cells), results_of(values)).spreads["top1"] for cells in (CELLS, (*CELLS, again))
    )
    assert once == twice
    assert once.cells == 2


def test_two_recipes_that_are_one_run_at_a_smaller_scale_count_once():
    values = {"vanilla": [70.0, 71.0], "dynamic": []}
    results = results_of(values)
    twins = {**results.twins, RECIPES["dynamic"]: RECIPES["vanilla"]}
    spread = judge(table_of(), replace(results, twins=twins)).spreads["top1"]
    assert (spread.df, spread.cells) == (5, 1)


def test_cells_that_only_claims_are_about_count_too_and_metrics_stay_apart():
    hidden = replace(STATIC, paper=None)
    part = Part(name="hidden", terms=((1, hidden),), question=Exceeds())
    values = {"vanilla": [70.0, 71.0], "dynamic": [], "static": [50.0, 54.0]}
    shown = (VANILLA, replace(VANILLA, metric="top5", paper=95.0))
    found = judge(table_of(claim(part), cells=shown), results_of(values)).spreads
    s, df = spread_of([values["vanilla"], values["static"]], PRIOR["small"])
    assert (found["top1"].sd, found["top1"].df) == (pytest.approx(s), df)
    assert found["top5"].sd == pytest.approx(sqrt(4 * 0.5**2 / 5))  # both runs have the same top-5
    assert found.keys() == {"top1", "top5"}


def test_a_metric_that_no_run_has_yet_is_as_uncertain_as_the_prior():
    spread = judge(table_of(), results_of({"vanilla": []})).spreads["top1"]
    assert (spread.sd, spread.df, spread.cells) == (1.0, 4, 0)


def test_where_the_numbers_of_a_contrast_have_two_spreads_the_larger_one_counts():
    rise = replace(VANILLA, metric="end_top1_rise", paper=None)

    def changes(row, seed):
        return {"evolution": [{"top1": 0.0}] * 5 + [{"top1": 10.0 * seed}]}

    part = Part(name="", terms=((1, DYNAMIC), (-1, rise)), question=Exceeds())
    values = {"vanilla": [50.0, 50.0], "dynamic": [50.0, 50.0]}
    found = judge(table_of(claim(part)), results_of(values, changes=changes))
    steady, wild = found.spreads["top1"], found.spreads["end_top1_rise"]
    assert wild.sd == pytest.approx(sqrt((4 * 1.0**2 + 2 * 5.0**2) / 5))  # of rises of 0 and 10
    assert wild.sd > steady.sd
    assert found.claims[0].parts[0].spread == wild


# --- seeds to decide -----------------------------------------------------------------------


def fewest(decides):
    return next((seeds for seeds in range(1, 1001) if decides(seeds)), None)


@pytest.mark.parametrize("difference", [0.1, -0.2, 0.3, -0.8])
def test_seeds_to_decide_of_a_number_are_the_fewest_that_would(difference):
    values = {"vanilla": [70.0 + difference], "dynamic": [72.0], "static": []}
    found = numbers(values)[VANILLA]
    assert found.word == "undecided"
    s, delta = 0.15, 0.5

    def decides(seeds):
        half = stdtrit(4 + 2 * (seeds - 1), 0.95) * sqrt(s**2 * (1 / seeds + 1) + 0.01 / 12)
        return abs(difference) + half < delta or abs(difference) - half > delta

    assert found.seeds_to_decide == fewest(decides)


def test_no_seeds_decide_on_a_number_that_is_decided_or_lies_on_its_margin():
    assert numbers({"vanilla": [75.0]})[VANILLA].seeds_to_decide is None
    on_margin = numbers({"vanilla": [70.5]})[VANILLA]
    assert (on_margin.word, on_margin.seeds_to_decide) == ("undecided", None)


@pytest.mark.parametrize("gain", [0.5, 2.0, -0.5, 0.01])
def test_seeds_to_decide_of_a_contrast_are_the_fewest_that_would(gain):
    part = Part(name="gain", terms=GAIN.terms, question=Exceeds())
    values = {"vanilla": [50.0], "dynamic": [50.0 + gain], "static": []}
    claims = [claim(part, name="a"), claim(part, name="b")]
    found = judge(table_of(*claims), results_of(values)).claims[0].parts[0]

    def decides(seeds):
        df, error = 4 + 2 * (seeds - 1), sqrt(2 / seeds)
        return stdtr(df, -gain / error) <= 0.05 / 2 or stdtr(df, gain / error) <= 0.05

    assert found.seeds_to_decide == fewest(decides)
    assert (found.seeds_to_decide is None) == (gain == 0.01)


def test_seeds_at_hand_do_not_decide_where_the_word_is_undecided():
    """A claim of two parts is contradicted by one of them at 0.025: seeds that bring 0.03 are not enough."""
    s, seeds = PRIOR["small"], 10
    value = stdtrit(4 + 3 * (seeds - 1), 0.03) * s * sqrt(2 / seeds)
    bad = Part(name="dynamic", terms=GAIN.terms, question=Exceeds())
    fine = Part(name="static", terms=((1, STATIC), (-1, VANILLA)), question=Exceeds())
    values = {"vanilla": 50.0, "dynamic": 50.0 + value, "static": 60.0}
    values = {row: around(mean, seeds, s) for row, mean in values.items()}
    (found,) = judge(table_of(claim(bad, fine)), results_of(values)).claims
    assert found.word == "undecided"
    assert found.parts[0].seeds_to_decide > seeds


# --- times, and runs that don't show the number --------------------------------------------

SECONDS = tuple(replace(cell, metric="log_epoch_seconds", paper=None) for cell in CELLS)
SLOWER = exceeds("dynamic is slower", (1, SECONDS[1]), (-1, SECONDS[0]))


def timed(environments):
    """Records of 1 s an epoch (vanilla) and 2 s, on a device for each row and seed."""

    def changes(row, seed):
        record = record_of(RECIPES[row], seed, 50.0)
        return {
            "evolution": [{"seconds": 1.0 + (row == "dynamic")}] * 3,
            "environment": {**record.environment, **environments.get((row, seed), {})},
        }

    values = {"vanilla": [50.0, 50.0], "dynamic": [50.0, 50.0]}
    return judge(table_of(claim(SLOWER)), results_of(values, changes=changes)).claims[0]


def test_times_of_one_device_are_compared():
    found = timed({})
    assert (found.word, found.note) == ("holds", "")
    assert found.parts[0].estimate.value == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    "other", [{"device_name": "another"}, {"precision": "bfloat16"}, {"augmentation": "device"}]
)
def test_times_of_two_devices_precisions_or_feeds_are_not(other):
    found = timed({("dynamic", 1): other})
    assert (found.word, found.p, found.parts[0].estimate) == ("undecided", 1.0, None)
    assert "different devices" in found.note


def test_accuracies_may_come_from_different_devices():
    def changes(row, seed):
        return {"environment": {**record_of(RECIPES[row], 0, 0.0).environment, "device_name": row}}

    values = {"vanilla": [50.0] * 3, "dynamic": [60.0] * 3}
    (found,) = judge(table_of(claim(GAIN)), results_of(values, changes=changes)).claims
    assert (found.word, found.note) == ("holds", "")


def test_finished_runs_that_do_not_show_the_number_leave_a_claim_undecided_and_say_so():
    probed = tuple(replace(cell, metric="easy_drop", paper=None) for cell in CELLS)
    part = exceeds("fewer easy samples", (1, probed[0]))
    look = {"random_erasing": {"easy": 0.5}, "patch_erasing": {"easy": 0.3}}

    def judged(values, *, looked):
        def changes(row, seed):
            return {"evolution": [{"probe": look} if seed in looked else {}] * 2}

        return judge(table_of(claim(part), cells=probed), results_of(values, changes=changes)).claims[0]

    unseen = judged({"vanilla": [50.0, 50.0]}, looked=())
    assert (unseen.word, unseen.p) == ("undecided", 1.0)
    assert "the runs are there" in unseen.note
    seen = judged({"vanilla": [50.0, 50.0]}, looked=(0, 1))
    assert (seen.word, seen.note) == ("holds", "")
    assert judged({"vanilla": [50.0, 50.0]}, looked=(1,)).parts[0].seeds == (1,)
    assert judged({"vanilla": []}, looked=(0, 1)).word == "not run"


# --- what --strict objects to --------------------------------------------------------------


def test_disappointing_are_numbers_below_and_claims_contradicted_and_nothing_else():
    contradicted = more("dynamic over static", DYNAMIC, STATIC)
    fine = more("static over vanilla", STATIC, VANILLA)
    values = {"vanilla": [68.0] * 3, "dynamic": [70.0] * 3, "static": [73.0] * 3}
    table = table_of(claim(contradicted, name="worse"), claim(fine, name="better"))
    found = judge(table, results_of(values, scale="paper"))
    assert {cell.row: verdict.word for cell, verdict in found.numbers.items()} == {
        "vanilla": "below",
        "dynamic": "below",
        "static": "above",
    }
    assert [verdict.word for verdict in found.claims] == ["contradicted", "holds"]
    assert found.disappointing == [
        "below: vanilla, model, top-1",
        "below: dynamic, model, top-1",
        "contradicted: worse",
    ]


def test_nothing_that_is_undecided_or_not_run_disappoints():
    open_ = claim(more("static over vanilla", STATIC, VANILLA), name="open")
    values = {"vanilla": [70.3], "dynamic": [], "static": [70.5]}
    found = judge(table_of(claim(GAIN), open_), results_of(values, scale="paper"))
    assert [verdict.word for verdict in found.claims] == ["not run", "undecided"]
    assert [found.numbers[cell].word for cell in CELLS] == ["undecided", "not run", "undecided"]
    assert found.disappointing == []


# --- properties ----------------------------------------------------------------------------

few = settings(max_examples=40)  # a judgement takes milliseconds: all run ids are made anew
counts = st.tuples(*[st.integers(1, 5)] * 3)
means = st.tuples(*[st.integers(0, 400).map(lambda tenths: 50 + tenths / 10)] * 3)
QUESTIONS = st.one_of(
    st.builds(Exceeds, bound=st.just(0.0), size=st.none() | st.floats(0.1, 5)),
    st.builds(StaysWithin, delta=st.floats(0.1, 5)),
)


@st.composite
def measured(draw):
    """Values of the three rows: seeds of each, around means of each, with a spread of their own."""
    sd = draw(st.floats(0.05, 2))
    return {
        row: around(mean, seeds, sd) for row, mean, seeds in zip(ROWS, draw(means), draw(counts), strict=True)
    }


@st.composite
def contrasts(draw, question=QUESTIONS):
    """A part about two or three of the cells."""
    c = draw(st.lists(st.sampled_from([-1.0, -0.5, 0.5, 1.0]), min_size=1, max_size=3))
    terms = tuple(zip(c, draw(st.permutations(CELLS)), strict=False))
    return Part(name="contrast", terms=terms, question=draw(question))


def several_claims(least=1):
    parts = st.lists(contrasts(), min_size=1, max_size=3)
    return st.lists(parts, min_size=least, max_size=3).map(
        lambda claims: tuple(claim(*parts, name=str(i)) for i, parts in enumerate(claims))
    )


def width(estimate):
    return estimate.upper(0.95) - estimate.lower(0.95)


@few
@given(counts, st.integers(0, 2), contrasts(), st.sampled_from(["small", "paper"]))
def test_adding_a_seed_at_equal_spread_narrows_every_interval(seeds, which, part, scale):
    """The spread stays because every cell has exactly the prior's."""
    more_seeds = [n + (i == which) for i, n in enumerate(seeds)]
    fewer, more = (
        judge(
            table_of(claim(part)),
            results_of(
                {row: around(70.0, n, PRIOR[scale]) for row, n in zip(ROWS, counts, strict=True)}, scale=scale
            ),
        )
        for counts in (seeds, more_seeds)
    )
    assert more.spreads["top1"].sd == pytest.approx(fewer.spreads["top1"].sd)
    assert width(more.claims[0].parts[0].estimate) < width(fewer.claims[0].parts[0].estimate)
    if scale == "paper":
        for cell in CELLS:
            assert width(more.numbers[cell].estimate) < width(fewer.numbers[cell].estimate)


def in_short(judgement):
    """What a judgement says, free of the last digits of sums in another order."""

    def short(verdict):
        if verdict.estimate is None:
            return None
        facts = (verdict.estimate.value, verdict.estimate.error, verdict.estimate.df, verdict.spread.sd)
        return tuple(round(float(fact), 9) for fact in facts)

    return (
        {cell: (verdict.word, short(verdict)) for cell, verdict in judgement.numbers.items()},
        {
            verdict.claim.id: (
                verdict.word,
                round(verdict.p, 9),
                round(verdict.p_holm, 9),
                sorted(map(short, verdict.parts)),
            )
            for verdict in judgement.claims
        },
    )


@few
@given(measured(), several_claims(), st.data(), st.sampled_from(["small", "paper"]))
def test_the_order_of_seeds_cells_claims_parts_and_terms_changes_nothing(values, claims, data, scale):
    def shuffled(items):
        return tuple(data.draw(st.permutations(items)))

    other_claims = shuffled(
        [
            replace(one, parts=shuffled([replace(part, terms=shuffled(part.terms)) for part in one.parts]))
            for one in claims
        ]
    )
    other_values = {row: list(shuffled(values[row])) for row in shuffled(list(values))}
    here = judge(table_of(*claims), results_of(values, scale=scale))
    there = judge(table_of(*other_claims, cells=shuffled(CELLS)), results_of(other_values, scale=scale))
    assert in_short(here) == in_short(there)


@few
@given(measured(), st.lists(contrasts(), min_size=1, max_size=3), st.sampled_from(["small", "paper"]))
def test_a_claim_and_its_reverse_never_both_hold(values, parts, scale):
    """Alone or beside each other; whatever size the paper gives either."""
    parts = [replace(part, question=Exceeds(size=getattr(part.question, "size", None))) for part in parts]
    reverse = [replace(part, terms=tuple((-c, cell) for c, cell in part.terms)) for part in parts]
    results = results_of(values, scale=scale)
    together = judge(table_of(claim(*parts, name="a"), claim(*reverse, name="b")), results).claims
    alone = [judge(table_of(claim(*these)), results).claims[0] for these in (parts, reverse)]
    for found in (together, alone):
        assert sum(verdict.word.startswith("holds") for verdict in found) <= 1


@few
@given(measured(), contrasts(question=st.builds(Exceeds)), st.sampled_from(["small", "paper"]))
def test_where_a_claim_without_a_size_holds_its_reverse_is_contradicted(values, part, scale):
    reverse = replace(part, terms=tuple((-c, cell) for c, cell in part.terms))
    results = results_of(values, scale=scale)
    one, other = (judge(table_of(claim(these)), results).claims[0].word for these in (part, reverse))
    assert (one == "holds") == (other == "contradicted")


@few
@given(measured(), several_claims(), st.sampled_from(["small", "paper"]))
def test_p_values_are_probabilities_and_holm_never_makes_one_smaller(values, claims, scale):
    for found in judge(table_of(*claims), results_of(values, scale=scale)).claims:
        assert 0 <= found.p <= found.p_holm <= 1
        assert found.p == max(part.p for part in found.parts)
        assert found.p_holm <= len(claims) * found.p + 1e-12


@few
@given(measured(), several_claims(2))
def test_a_declared_claim_more_never_makes_another_one_hold(values, claims):
    results = results_of(values)
    fewer = {found.claim.id: found.word for found in judge(table_of(*claims[1:]), results).claims}
    for found in judge(table_of(*claims), results).claims[1:]:
        assert fewer[found.claim.id].startswith("holds") or not found.word.startswith("holds")


# --- small things --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (GAIN, "> 0 (paper: +2)"),
        (Part(name="", terms=(), question=Exceeds()), "> 0"),
        (Part(name="", terms=(), question=Exceeds(bound=-20.0)), "> -20"),
        (stays_within("", (1, VANILLA)), "within ±0.5"),
    ],
)
def test_what_is_wanted_is_said_in_a_few_signs(part, text):
    assert wanted(part) == text


def test_every_kind_of_number_has_a_prior_at_the_scales_that_are_judged():
    for kind in KINDS.values():
        assert kind.prior.keys() == {"small", "paper"}
        assert all(prior > 0 for prior in kind.prior.values())
