"""Table 5 as the paper prints it, and how a table of records is rendered."""

from collections import defaultdict
from dataclasses import replace
import json
import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit.ledger import LAYOUT, Record
from dcvit.recipe import (
    DynamicAlpha,
    FixedAlpha,
    PatchErasing,
    Periods,
    RandomErasing,
    StaticAlpha,
    as_data,
    run_id,
)
from dcvit.scale import SCALES, at_scale
from dcvit.tables import Results, Table, as_json, render
from reproductions.table5_backbones import TABLE as TABLE5
from tests.helpers import PLAIN, tiny, tiny_table

TABLES = [TABLE5]

# Table 5, typed from the paper: backbone, parameters (M), resolution, baseline, ours (with the printed gain)
PRINTED = """
DeiT-T      5   224   72.2  91.1   72.8 +0.6   91.4 +0.3
DeiT-S      22  224   79.8  95.0   80.5 +0.7   95.2 +0.2
DeiT-B      86  224   81.8  95.6   82.4 +0.6   95.8 +0.2
DeiT-B-384  86  384   82.9  96.2   83.4 +0.5   96.3 +0.1
Swin-T      28  224   81.3  95.5   81.8 +0.5   95.7 +0.2
Swin-S      50  224   83.0  96.2   83.5 +0.5   96.3 +0.1
Swin-B      88  224   83.5  96.5   84.0 +0.5   96.7 +0.2
Swin-B-384  88  384   84.5  97.0   84.9 +0.4   97.2 +0.2
"""
ROWS = [line.split() for line in PRINTED.strip().splitlines()]
BY_PLACE = {(cell.row, cell.column, cell.metric): cell for cell in TABLE5.cells}


# --- what the paper prints -----------------------------------------------------------------


def test_table_5_declares_the_papers_numbers():
    printed = {}
    for row, _, _, top1, top5, our_top1, _, our_top5, _ in ROWS:
        printed[row, "baseline", "top1"], printed[row, "baseline", "top5"] = float(top1), float(top5)
        printed[row, "ours", "top1"], printed[row, "ours", "top5"] = float(our_top1), float(our_top5)
    assert len(printed) == 32
    assert {place: cell.paper for place, cell in BY_PLACE.items()} == printed
    assert len(TABLE5.cells) == 32


def test_the_printed_gains_are_differences_of_the_declared_levels():
    for row, _, _, _, _, _, gain1, _, gain5 in ROWS:
        for metric, gain in (("top1", gain1), ("top5", gain5)):
            ours = BY_PLACE[row, "ours", metric]
            assert f"{ours.paper - TABLE5.baseline_of(ours).paper:+.1f}" == gain


def test_parameters_and_resolution_stand_beside_each_row():
    for row, parameters, resolution, *_ in ROWS:
        assert list(TABLE5.row_facts[row].values()) == [f"{parameters}M", f"{resolution} px"]
        assert BY_PLACE[row, "ours", "top1"].recipe.resolution == int(resolution)


@pytest.mark.parametrize(
    ("row", "alpha", "patch_size"),
    [
        ("DeiT-T", DynamicAlpha(), 16),
        ("DeiT-S", DynamicAlpha(), 16),
        ("DeiT-B", StaticAlpha(), 16),
        ("DeiT-B-384", StaticAlpha(), 16),
        ("Swin-T", DynamicAlpha(), 4),
        ("Swin-S", DynamicAlpha(), 4),
        ("Swin-B", StaticAlpha(), 4),
        ("Swin-B-384", StaticAlpha(), 4),
    ],
)
def test_ours_is_the_baseline_with_the_papers_strategy_and_patch_erasing(row, alpha, patch_size):
    baseline, ours = (BY_PLACE[row, column, "top1"].recipe for column in ("baseline", "ours"))
    assert (baseline.alpha, baseline.erasing) == (FixedAlpha(alpha=0.8), RandomErasing(probability=0.25))
    assert baseline.exploration_erasing == baseline.erasing
    assert ours.exploration_erasing == PatchErasing(patch_size=patch_size, mu=0.5)
    changed = dict(alpha=alpha, exploration_erasing=ours.exploration_erasing, pretrained=ours.pretrained)
    assert ours == replace(baseline, **changed)


@pytest.mark.parametrize("column", ["baseline", "ours"])
@pytest.mark.parametrize("family", ["DeiT-B", "Swin-B"])
def test_the_384_rows_start_from_their_224_runs_and_explore_throughout(family, column):
    recipe = BY_PLACE[f"{family}-384", column, "top1"].recipe
    assert recipe.pretrained == BY_PLACE[family, column, "top1"].recipe
    assert (recipe.periods, recipe.epochs) == (Periods(0.0, 0.0), 30)


# --- all tables ----------------------------------------------------------------------------


def test_the_paper_gives_one_number_to_one_recipe():
    seen = defaultdict(set)
    for table in TABLES:
        for cell in table.cells:
            seen[cell.recipe, cell.metric].add(cell.paper)
    assert {key: numbers for key, numbers in seen.items() if len(numbers) > 1} == {}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"table{table.number}")
def test_no_two_cells_are_the_same_experiment_at_any_scale(table, scale):
    names = {(run_id(at_scale(cell.recipe, scale), seed=0), cell.metric) for cell in table.cells}
    assert len(names) == len(table.cells)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"table{table.number}")
def test_every_gain_is_over_a_cell_of_the_same_row_or_column_and_metric(table):
    for cell in table.cells:
        over = table.baseline_of(cell)
        assert over is None or (over.metric, table.baseline_of(over)) == (cell.metric, None)


def test_gains_are_over_a_row_where_no_column_has_the_baselines_name():
    cells = tuple(replace(cell, row=cell.column, column="DeiT-T") for cell in tiny_table(a=1, b=2).cells)
    table = Table(number=1, title="", cells=cells, baseline="a", chosen_here=())
    assert [table.baseline_of(cell) for cell in cells] == [None, None, cells[0], cells[1]]


# --- rendering -----------------------------------------------------------------------------

BASELINE, OURS = tiny(), tiny(**PLAIN)
TABLE = tiny_table(baseline=BASELINE, ours=OURS)


def record_of(recipe, seed, top1, *, top5=95.0, best=None):
    return Record(
        layout=LAYOUT,
        run_id=run_id(recipe, seed),
        recipe=as_data(recipe),
        seed=seed,
        data={"name": "folder", "fingerprint": "0123456789abcdef", "classes": 3},
        environment={
            "versions": {"torch": "2.9", "timm": "1.0"},
            "commit": "abc",
            "dirty": True,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "float32",
        },
        parameters=1_234_567,
        samples_seen=24,
        last={"top1": top1, "top5": top5},
        best={"top1": top1 if best is None else best, "top5": top5, "epoch": 1},
        correct="ff",
        evolution=[],
        weights={},
        started="2024-01-01T00:00:00+00:00",
        seconds=1.5,
    )


def results_of(baseline, ours, *, scale="small", problems=None, best=None):
    """Results of which `baseline` and `ours` are the top-1 accuracies, one a seed."""
    records = [
        record_of(recipe, seed, value, best=best)
        for recipe, values in ((BASELINE, baseline), (OURS, ours))
        for seed, value in enumerate(values)
    ]
    return Results(
        scale=scale,
        images="some images",
        seeds=tuple(range(max(len(baseline), len(ours), 1))),
        twins={BASELINE: BASELINE, OURS: OURS},
        records={record.run_id: record for record in records},
        problems=problems or {},
    )


def rows_of(page, section):
    """The cells of a section's table, head first."""
    body = page.split(f"## {section}")[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    found = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in found}) == 1, "every line has as many cells as the head"
    return [row for number, row in enumerate(found) if number != 1]


def cell_of(results, column, metric="top-1"):
    """What the page says about one cell: heading -> text."""
    head, *rows = rows_of(render(TABLE, results), "Every cell")
    (row,) = [row for row in rows if row[1:3] == [column, metric]]
    return dict(zip(head, row, strict=True))


def test_a_cell_shows_paper_ours_both_gains_best_and_seeds():
    results = results_of([72.2], [73.0], best=74.5)
    assert cell_of(results, "ours") == {
        "model": "model",
        "training": "ours",
        "metric": "top-1",
        "paper": "70.0",
        "ours": "73.00",
        "gain in the paper": "+0.0",
        "gain here": "+0.80",
        "best": "74.50",
        "seeds": "1 of 1",
    }


def test_trailing_zeros_stay():
    assert cell_of(results_of([72.2], [73.0]), "baseline")["ours"] == "72.20"


def test_a_baseline_has_no_gain():
    cell = cell_of(results_of([72.2], [73.0]), "baseline")
    assert (cell["gain in the paper"], cell["gain here"]) == ("", "")


def test_several_seeds_give_a_mean_and_a_standard_deviation():
    cell = cell_of(results_of([70.0, 71.0, 72.0], [72.0, 73.0, 74.0]), "ours")
    assert (cell["ours"], cell["gain here"], cell["seeds"]) == ("73.00 ± 1.00", "+2.00", "3 of 3")


def test_a_missing_seed_shows_in_the_count():
    assert cell_of(results_of([70.0, 71.0], [72.0]), "ours")["seeds"] == "1 of 2"


def test_a_cell_that_was_not_run_says_so():
    cell = cell_of(results_of([70.0], []), "ours")
    assert (cell["ours"], cell["gain here"], cell["best"], cell["seeds"]) == ("not run", "", "", "0 of 1")


def test_a_failed_run_shows_in_its_cells_and_its_reason_below():
    results = results_of([70.0], [], problems={run_id(OURS, 0): "diverged: at update 3"})
    assert cell_of(results, "ours")["ours"] == "failed"
    assert cell_of(results, "ours", "top-5")["ours"] == "failed"
    assert cell_of(results, "baseline")["ours"] == "70.00"
    assert f"- `{run_id(OURS, 0)}`: diverged: at update 3\n" in render(TABLE, results)


def test_a_page_without_records_says_that_no_run_has_finished():
    assert "No run has finished." in render(TABLE, results_of([], []))


def test_the_glance_shows_ours_with_the_papers_number():
    assert rows_of(render(TABLE, results_of([72.2], [73.1])), "At a glance") == [
        ["", "parameters here", "resolution here", "baseline", "ours", "gain here"],
        ["model", "1.23M", "8 px", "72.20 (70.0)", "73.10 (70.0)", "+0.90"],
    ]


def test_bars_in_names_do_not_break_the_table():
    cells = tuple(replace(cell, row="a | b") for cell in TABLE.cells)
    page = render(replace(TABLE, cells=cells), results_of([72.2], [73.0]))
    assert {row[0] for row in rows_of(page, "Every cell")[1:]} == {r"a \| b"}


def test_at_smoke_the_first_lines_say_that_the_numbers_say_nothing_about_the_paper():
    title, _, warning, *_ = render(TABLE, results_of([70.0], [71.0], scale="smoke")).splitlines()
    assert title.startswith("# Table 99")
    assert "They say nothing about the paper." in warning


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_no_such_warning_at_the_larger_scales(scale):
    page = render(TABLE, results_of([70.0], [71.0], scale=scale))
    assert "say nothing about" not in page
    assert f"Scale {scale}; images: some images" in page


def test_the_page_names_data_device_commit_and_time():
    page = render(TABLE, results_of([70.0], [71.0]))
    for fact in (
        "some images",
        "0123456789ab",
        "a processor (cpu)",
        "float32",
        "torch 2.9",
        "abc with changes",
    ):
        assert fact in page
    assert "2 runs of 1 seed each, 3 s of training in all" in page


def test_what_was_chosen_here_is_listed():
    assert render(TABLE, results_of([], [])).endswith(
        "## Not in the paper, chosen here\n\n- Nothing of it is in the paper.\n"
    )


def test_what_the_scale_changes_is_listed():
    results = results_of([], [])
    twins = {BASELINE: replace(BASELINE, batch=6), OURS: replace(OURS, batch=6, epochs=9)}
    page = render(TABLE, replace(results, twins=twins))
    assert rows_of(page, "What scale small changes")[1:] == [
        ["`batch`", "4", "6", "all"],
        ["`epochs`", "2", "9", "all"],
    ]


def test_nothing_is_said_of_changes_at_paper_scale():
    assert "What scale" not in render(TABLE, results_of([], []))


percents = st.floats(0, 90, allow_nan=False)


@given(
    st.lists(percents, min_size=1, max_size=3), st.lists(percents, min_size=1, max_size=3), st.floats(0, 10)
)
def test_a_shift_of_both_columns_leaves_the_gain(baseline, ours, shift):
    def gain(by):
        results = results_of([value + by for value in baseline], [value + by for value in ours])
        return float(cell_of(results, "ours")["gain here"])

    assert gain(shift) == pytest.approx(gain(0), abs=0.0101)  # printed with two digits


# --- as data -------------------------------------------------------------------------------


def test_the_facts_have_one_entry_for_each_cell():
    facts = as_json(TABLE, results_of([70.0, 71.0], [72.0, 73.5], best=80.0))
    assert (facts["table"], facts["scale"], facts["seeds"]) == (99, "small", [0, 1])
    assert len(facts["cells"]) == len(TABLE.cells)
    assert facts["cells"][2] == {
        "row": "model",
        "column": "ours",
        "metric": "top1",
        "paper": 70.0,
        "values": [72.0, 73.5],
        "runs": [run_id(OURS, 0), run_id(OURS, 1)],
        "best": [80.0, 80.0],
    }


def test_a_failed_run_is_among_the_problems_and_not_behind_its_cell():
    facts = as_json(TABLE, results_of([70.0], [], problems={run_id(OURS, 0): "why"}))
    assert facts["problems"] == {run_id(OURS, 0): "why"}
    assert (facts["cells"][2]["values"], facts["cells"][2]["runs"]) == ([], [])


@pytest.mark.parametrize("scale", SCALES)
def test_the_facts_of_table_5_are_json(scale):
    twins = {cell.recipe: at_scale(cell.recipe, scale) for cell in TABLE5.cells}
    results = Results(scale=scale, images="", seeds=(0,), twins=twins, records={}, problems={})
    facts = as_json(TABLE5, results)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert {(cell["row"], cell["column"], cell["metric"]) for cell in facts["cells"]} == BY_PLACE.keys()
    assert len({name for cell in facts["cells"] for name in cell["runs"]}) == 16
