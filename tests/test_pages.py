"""How records become a page, and the same as data."""

from dataclasses import replace
import json
import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit.facts import as_json
from dcvit.pages import render, summary
from dcvit.recipe import run_id
from dcvit.scale import SCALES, at_scale
from dcvit.tables import Results
from reproductions.table5_backbones import TABLE as TABLE5
from tests.helpers import PLAIN, record_of, tiny, tiny_table

BASELINE, OURS = tiny(), tiny(**PLAIN)
TABLE = tiny_table(baseline=BASELINE, ours=OURS)


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
        "row": "model",
        "column": "ours",
        "number": "top-1",
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
        [
            *("", "baseline, top-1", "ours, top-1", "gain here, top-1"),
            *("baseline, top-5", "ours, top-5", "gain here, top-5"),
        ],
        ["model", "72.20 (70.0)", "73.10 (70.0)", "+0.90", "95.00 (90.0)", "95.00 (90.0)", "+0.00"],
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


NOTHING = {"estimate": None, "low": None, "high": None, "s": None, "df": None}
NOT_COMPARABLE = {"word": "not comparable", "delta": 0.5, "seeds": 0, **NOTHING, "seeds_to_decide": None}


def test_the_facts_have_one_entry_for_each_cell():
    facts = as_json(TABLE, results_of([70.0, 71.0], [72.0, 73.5], best=80.0))
    assert (facts["table"], facts["scale"], facts["seeds"]) == (99, "small", [0, 1])
    assert len(facts["cells"]) == len(TABLE.cells)
    assert facts["cells"][2] == {
        "row": "model",
        "column": "ours",
        "group": "",
        "metric": "top1",
        "unit": "%",
        "paper": 70.0,
        "values": [72.0, 73.5],
        "runs": [run_id(OURS, 0), run_id(OURS, 1)],
        "best": [80.0, 80.0],
        "verdict": NOT_COMPARABLE,
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
    places = {(cell.row, cell.column, cell.metric) for cell in TABLE5.cells}
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert {(cell["row"], cell["column"], cell["metric"]) for cell in facts["cells"]} == places
    assert len({name for cell in facts["cells"] for name in cell["runs"]}) == 16


# --- who augmented the images --------------------------------------------------------------


def augmented(results, *ways):
    """The results with records that name these augmentations, one after the other; None: an older record."""
    records = {
        name: replace(
            record, environment={**record.environment, **({"augmentation": way} if way is not None else {})}
        )
        for (name, record), way in zip(results.records.items(), ways, strict=True)
    }
    return replace(results, records=records)


WARNING = "Not all runs were augmented alike"


@pytest.mark.parametrize(
    ("ways", "word"),
    [
        ((None, None, None, None), "pil"),
        (("pil", None, "pil", None), "pil"),
        (("device",) * 4, "device"),
    ],
)
def test_a_page_whose_runs_were_augmented_alike_names_it_once(ways, word):
    results = results_of([70.0, 71.0], [72.0, 73.0])
    page = render(TABLE, augmented(results, *ways))
    assert page.count(f"augmentation: {word};") == 1
    assert WARNING not in page
    assert page.replace(f"augmentation: {word};", "augmentation: pil;") == render(TABLE, results)
    facts = as_json(TABLE, augmented(results, *ways))
    assert (facts["made_with"]["augmentation"], facts["by_augmentation"]) == ([word], {})


@pytest.mark.parametrize("older", ["pil", None])
def test_a_page_that_mixes_augmentations_says_where(older):
    results = augmented(results_of([70.0, 71.0], [72.0, 73.0]), "device", older, "device", "device")
    facts = as_json(TABLE, results)
    assert facts["made_with"]["augmentation"] == ["device", "pil"]
    assert facts["by_augmentation"] == {
        "device": ["model, baseline", "model, ours"],
        "pil": ["model, baseline"],
    }
    for page in (render(TABLE, results), summary(TABLE, results)):
        assert "augmentation: device, pil;" in page
        assert page.count(WARNING) == 1
        assert "by device: model, baseline / model, ours; by pil: model, baseline" in page


def test_images_from_a_cache_are_other_images():
    results = augmented(results_of([70.0], [72.0]), "device", "device")
    name, record = next(iter(results.records.items()))
    cached = replace(record, environment={**record.environment, "cache": True})
    page = render(TABLE, replace(results, records={**results.records, name: cached}))
    assert "augmentation: device, device from a cache;" in page
    assert "by device: model, ours; by device from a cache: model, baseline" in page


def test_what_a_record_calls_its_augmentation_is_no_markup():
    results = augmented(results_of([70.0], [72.0]), "<b>*x*", "pil")
    page = render(TABLE, results)
    assert WARNING in page
    assert "<b>" not in page
    assert "*x*" not in page.replace("\\*x\\*", "")
