"""The tables and claims as the paper prints them, typed once more."""

from collections import defaultdict
from dataclasses import replace

import pytest

from dcvit.quantities import kind_of
from dcvit.recipe import (
    DynamicAlpha,
    FixedAlpha,
    PatchErasing,
    Periods,
    RandomErasing,
    StagedAlpha,
    StaticAlpha,
    run_id,
)
from dcvit.scale import SCALES, at_scale
from dcvit.statistics import Exceeds
from dcvit.tables import Cell, Table, exceeds, find_cell, more
from reproductions.all_tables import TABLES
from reproductions.learning_process import LIGHTER_DEIT_S
from reproductions.learning_process import TABLE as LEARNING
from tests.helpers import tiny, tiny_table

TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, _ = TABLES

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


# Tables 1, 3 and 4, typed from the paper: a line a row, DeiT-T, DeiT-S, DeiT-B (Table 1: and Swin-T, Swin-S, Swin-B)
ROW_BY_ROW = {
    1: """
none        72.2 79.8 81.8 81.3 83.0 83.5
ME in T1    72.5 79.9 81.8 81.4 83.0 83.5
ME in T1-2  72.7 80.0 81.6 81.5 82.8 83.3
ME in T1-3  72.9 79.4 81.3 81.1 82.4 82.8
MH in T3    71.6 80.2 82.1 81.4 83.3 83.7
MH in T2-3  71.0 80.0 82.2 81.6 83.4 83.8
MH in T1-3  69.5 79.7 81.7 81.0 82.9 83.6
""",
    3: """
vanilla        72.2 79.8 81.8
dynamic-based  72.6 80.3 82.2
static-based   72.4 80.2 82.3
""",
    4: """
RandomErasing         72.2 79.8 81.8
PatchErasing 0-10 %   72.5 80.0 81.9
PatchErasing 0-50 %   72.4 80.1 82.1
PatchErasing 0-100 %  71.8 79.9 82.2
""",
}
MODELS = ("DeiT-T", "DeiT-S", "DeiT-B", "Swin-T", "Swin-S", "Swin-B")
# Table 2: k, then p_k and top-1 with the printed change of DeiT-S, DeiT-B, Swin-S, Swin-B
PROBED = """
0   0.67       77.8       0.75       85.5       0.631        80.2       0.631        82.0
1   0.67 -0.00 77.5 -0.3  0.75 -0.00 85.5 -0.0  0.631 -0.000 80.0 -0.2  0.631 -0.000 81.9 -0.1
5   0.66 -0.01 76.0 -1.8  0.75 -0.00 85.2 -0.3  0.630 -0.001 79.7 -0.5  0.631 -0.000 81.5 -0.5
10  0.64 -0.03 74.3 -3.5  0.74 -0.01 84.9 -0.6  0.627 -0.004 78.9 -1.3  0.630 -0.001 81.0 -1.0
"""


@pytest.mark.parametrize("table", [TABLE1, TABLE3, TABLE4], ids=lambda table: table.name)
def test_tables_1_3_and_4_declare_the_papers_numbers(table):
    columns = MODELS if table is TABLE1 else MODELS[:3]
    printed = {}
    for line in ROW_BY_ROW[table.number].strip().splitlines():
        words = line.split()
        row, numbers = " ".join(words[: -len(columns)]), words[-len(columns) :]
        printed |= {(row, model): float(number) for model, number in zip(columns, numbers, strict=True)}
    declared = {(cell.row, cell.column): cell.paper for cell in table.cells if not cell.group}
    assert declared == printed
    assert {cell.paper for cell in table.cells if cell.group} <= {None}
    assert {cell.metric for cell in table.cells} == {"top1"}


def test_table_2_declares_the_papers_numbers_and_their_differences():
    base, printed = {}, {}
    for line in PROBED.strip().splitlines():
        k, *numbers = line.split()
        step = 1 if k == "0" else 2
        assert len(numbers) == 8 * step
        places = [
            (model, what) for model in ("DeiT-S", "DeiT-B", "Swin-S", "Swin-B") for what in ("p_k", "top-1")
        ]
        for place, level, change in zip(places, numbers[::step], numbers[step - 1 :: step], strict=True):
            printed[f"k = {k}", f"{place[0]}, {place[1]}"] = float(level)
            digits = len(level.partition(".")[2])
            if k == "0":
                base[place] = float(level)
            else:
                assert round(base[place] - float(level), digits) == -float(change)
            cell = find_cell(TABLE2.cells, f"k = {k}", ", ".join(place))  # the paper's own come first
            assert cell.digits == digits
    assert {(cell.row, cell.column): cell.paper for cell in TABLE2.cells if not cell.group} == printed
    assert len(printed) == 32


def test_table_2_probes_the_runs_of_table_5_and_trains_nothing_new():
    shown = {cell.recipe for cell in TABLE2.cells}
    assert shown <= {cell.recipe for cell in TABLE5.cells}
    assert len(shown) == 8


def test_table_6_declares_the_papers_numbers():
    printed = {
        ("baseline", "top1"): 78.5,
        ("baseline", "top5"): 94.4,
        ("ours", "top1"): 79.0,
        ("ours", "top5"): 94.7,
    }
    assert {(cell.column, cell.metric): cell.paper for cell in TABLE6.cells} == printed
    baseline, ours = (find_cell(TABLE6.cells, "ResNet-50", name).recipe for name in ("baseline", "ours"))
    changed = dict(alpha=DynamicAlpha(), exploration_erasing=PatchErasing(patch_size=16, mu=0.5))
    assert ours == replace(baseline, **changed)


def test_the_arms_of_table_1_are_easy_or_hard_in_the_periods_of_their_names():
    easy, hard, usual = 0.05, 8.0, 0.8
    for cell in TABLE1.cells:
        vanilla = find_cell(TABLE1.cells, "none", cell.column).recipe
        if cell.row == "none":
            assert cell.recipe.alpha == FixedAlpha(alpha=usual)
            continue
        value = easy if cell.row.startswith("ME") else hard
        first, last = {"T1": (1, 1), "T1-2": (1, 2), "T1-3": (1, 3), "T3": (3, 3), "T2-3": (2, 3)}[
            cell.row.split()[-1]
        ]
        alphas = [value if first <= period <= last else usual for period in (1, 2, 3)]
        assert cell.recipe == replace(
            vanilla,
            alpha=StagedAlpha(**dict(zip(("formation", "growth", "exploration"), alphas, strict=True))),
        )


def test_the_rows_of_table_3_differ_in_nothing_but_alphas_rule():
    rules = {"vanilla": FixedAlpha(), "dynamic-based": DynamicAlpha(), "static-based": StaticAlpha()}
    for cell in TABLE3.cells:
        vanilla = find_cell(TABLE3.cells, "vanilla", cell.column).recipe
        assert cell.recipe == replace(vanilla, alpha=rules[cell.row])


def test_the_rows_of_table_4_erase_patches_over_all_of_training():
    rates = {"0-10": 0.1, "0-50": 0.5, "0-100": 1.0}
    for cell in TABLE4.cells:
        vanilla = find_cell(TABLE4.cells, "RandomErasing", cell.column).recipe
        if cell.row == "RandomErasing":
            assert cell.recipe == vanilla
            continue
        decay = "area" if cell.row.endswith("area") else "none" if cell.row.endswith("stays") else "paper"
        assert (decay != "paper") == bool(cell.group)
        erasing = PatchErasing(patch_size=16, mu=rates[cell.row.split()[1]], decay=decay)
        assert cell.recipe == replace(vanilla, erasing=erasing, exploration_erasing=erasing)


def test_the_vanilla_rows_of_all_tables_are_the_same_runs():
    rows = {1: "none", 3: "vanilla", 4: "RandomErasing"}
    for table in (TABLE1, TABLE3, TABLE4):
        for model in {cell.column for cell in table.cells}:
            here = find_cell(table.cells, rows[table.number], model).recipe
            assert here == find_cell(TABLE5.cells, model, "baseline").recipe
            if not model.startswith("Swin") or table is TABLE1:
                assert here == find_cell(LEARNING.cells, model, LEARNING.cells[0].column).recipe


def test_only_one_run_is_trained_for_the_figures_alone():
    elsewhere = {cell.recipe for table in TABLES if table is not LEARNING for cell in table.cells}
    assert {cell.recipe for cell in LEARNING.cells} - elsewhere == {LIGHTER_DEIT_S}


def test_all_tables_need_as_many_runs_as_readme_and_scripts_say():
    runs = {cell.recipe for table in TABLES for cell in table.cells}
    assert {table.name: len({cell.recipe for cell in table.cells}) for table in TABLES} == {
        "table1": 42,
        "table2": 8,
        "table3": 9,
        "table4": 18,
        "table5": 16,
        "table6": 2,
        "learning": 7,
    }
    assert len(runs) == 76


# --- the claims ----------------------------------------------------------------------------

SIZES = {  # claim -> part -> size, from the printed numbers by hand; None: the paper gives none
    "easy-formation": [0.3, 0.1, 0.2],
    "hard-formation": [1.5, 0.3, 0.5],
    "easy-growth": [0.2, 0.5],
    "hard-exploration": [0.3, 0.2, 0.6],
    "patch-overfitting": ["±0.035"] * 4 + [3.5, 0.6, 1.3, 1.0],
    "small-loses-more": [2.9],
    "both-strategies": [0.4, 0.5, 0.4, 0.2, 0.4, 0.5],
    "which-strategy": [0.2, 0.1, 0.1],
    "best-rate": [0.3, 0.1, 0.7, 0.3, 0.1, 0.2, 0.4, 0.3, 0.1],
    "larger-prefer-stronger": [0.4, 0.6],
    "every-backbone": [0.6, 0.7, 0.6, 0.5, 0.5, 0.5, 0.5, 0.4],
    "average-gain": [0.5, 0.4],
    "no-extra-time": [None] * 6,
    "resnet": [0.5],
    "equal-formation": ["±3"] * 3,
    "slow-tiny": [None] * 2,
    "other-thresholds": ["±3"] * 2,
    "fewer-hard": [20.0],
    "stricter-thresholds": [None] * 2,
    "equal-swin": ["±0.1"] * 3,
    "late-overfitting": [None] * 2,
    "erasing-difficulty": [None] * 4,
}


def test_every_claim_has_the_sizes_of_the_printed_numbers():
    found = {}
    for table in TABLES:
        for claim in table.claims:
            questions = [part.question for part in claim.parts]
            found[claim.id] = [
                question.size if isinstance(question, Exceeds) else f"±{question.delta:g}"
                for question in questions
            ]
    assert found == SIZES


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_claims_are_about_runs_of_their_table_and_one_kind_of_number(table):
    assert table.claims
    recipes = {cell.recipe for cell in table.cells}
    for claim in table.claims:
        for part in claim.parts:
            assert {cell.recipe for _, cell in part.terms} <= recipes
            assert len({kind_of(cell.metric).unit for _, cell in part.terms}) == 1


def test_claims_about_several_backbones_weigh_them_alike():
    (claim,) = [claim for claim in TABLE5.claims if claim.id == "average-gain"]
    for part in claim.parts:
        assert sum(c for c, _ in part.terms) == 0
        assert sorted(c for c, _ in part.terms) == [-0.25] * 4 + [0.25] * 4


def test_a_claim_against_the_papers_own_numbers_is_refused():
    cells = tiny_table(baseline=tiny(), ours=tiny(batch=2)).cells
    larger, smaller = (replace(cells[0], paper=paper) for paper in (70.0, 71.0))
    with pytest.raises(ValueError, match=r"gain: the paper's own numbers give -1, which is not above 0"):
        more("gain", larger, smaller)


def test_a_contrast_of_different_kinds_of_numbers_is_refused():
    top1 = Cell(row="a", column="b", metric="top1", recipe=tiny())
    with pytest.raises(ValueError, match=r"a contrast of numbers in % and % of samples means nothing"):
        exceeds("nonsense", (1, top1), (-1, replace(top1, metric="late_hard")))


# --- parts of tables -----------------------------------------------------------------------


def test_only_takes_rows_columns_or_where_they_cross():
    def places(*names):
        return {(cell.row, cell.column) for cell in TABLE3.only(names)}

    assert len(places()) == 9
    assert places("vanilla") == {("vanilla", model) for model in MODELS[:3]}
    assert places("DeiT-T") == {(row, "DeiT-T") for row in ("vanilla", "dynamic-based", "static-based")}
    assert places("vanilla", "static-based", "DeiT-T") == {("vanilla", "DeiT-T"), ("static-based", "DeiT-T")}


def test_only_names_what_there_is():
    with pytest.raises(ValueError, match=r"--only 'DeiT-X' is no row or column .*'vanilla'.*'DeiT-B'"):
        TABLE3.only(["DeiT-X"])


def test_gains_of_table_2_are_over_k_0_of_the_same_model_and_number():
    for cell in TABLE2.cells:
        over = TABLE2.baseline_of(cell)
        if cell.row == "k = 0":
            assert over is None
            continue
        assert over.recipe == cell.recipe
        assert over.metric == f"attended/0/{cell.metric.rsplit('/')[-1]}"


# --- all tables ----------------------------------------------------------------------------


def test_the_paper_gives_one_number_to_one_recipe():
    seen = defaultdict(set)
    for table in TABLES:
        for cell in table.cells:
            if cell.paper is not None:
                seen[cell.recipe, cell.metric].add(cell.paper)
    assert {key: numbers for key, numbers in seen.items() if len(numbers) > 1} == {}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_no_two_cells_are_the_same_experiment_at_any_scale(table, scale):
    names = {(run_id(at_scale(cell.recipe, scale), seed=0), cell.metric) for cell in table.cells}
    assert len(names) == len(table.cells)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_gain_is_over_a_cell_of_the_same_row_or_column_and_metric(table):
    for cell in table.cells:
        over = table.baseline_of(cell)
        assert over is None or table.baseline_of(over) is None
        assert over is None or over.metric.split("/")[-1] == cell.metric.split("/")[-1]


def test_gains_are_over_a_row_where_no_column_has_the_baselines_name():
    cells = tuple(replace(cell, row=cell.column, column="DeiT-T") for cell in tiny_table(a=1, b=2).cells)
    table = Table(number=1, title="", cells=cells, baseline="a", chosen_here=())
    assert [table.baseline_of(cell) for cell in cells] == [None, None, cells[0], cells[1]]
