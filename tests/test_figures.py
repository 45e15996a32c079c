"""Figures show what the records hold, can be read, and name the runs behind them; as files they are the same again."""

from dataclasses import replace
from functools import cache
import hashlib
from itertools import combinations
import re
import subprocess
import sys
from xml.etree import ElementTree

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
import numpy as np
from PIL import Image
import pytest

from dcvit.curves import evolution, looks, mean_evolution, proportions
from dcvit.drawing import LOOKS, PAPER, PERIODS, POINTS, style, wrapped
from dcvit.errors import EnvironmentProblem
from dcvit.figures import (
    THRESHOLDS,
    easy_samples,
    erasing_difficulty,
    learning_process,
    overfitting,
    static_schedule,
    thresholds,
)
from dcvit.recipe import Periods, StaticAlpha
from dcvit.saving import SMOKE, made_by, save, signed
from dcvit.schedules import static_alpha
from dcvit.sheets import activation_sheet
from tests.helpers import environment, python, record_of, tiny

OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
LONG = "DeiT-S, lighter augmentation and a name that goes on for longer than any axis or legend can be wide, really"
WAYS = ("clean", "random_erasing", "patch_erasing")


# --- made-up records -----------------------------------------------------------------------


@cache
def run(epochs=300, *, centre=0.25, seed=0, probe=True, **recipe):
    """Top scores that rise from low to high as a logistic curve does, in 2,000 samples an epoch."""
    rng = np.random.default_rng(seed)
    t = np.arange(1, epochs + 1) / epochs
    entries, alpha = [], 0.0
    for epoch, mean in enumerate(0.08 + 0.65 / (1 + np.exp(-(t - centre) / 0.05)), start=1):
        parts = np.ceil(100 * rng.beta(5 * mean, 5 * (1 - mean), 2000)).clip(1, 100).astype(int) - 1
        histogram = np.bincount(parts, minlength=100)
        easy, hard = histogram[80:].sum() / 2000, histogram[:30].sum() / 2000
        alpha = 0.9 * alpha + 0.1 * (easy + 1 - hard) / 2
        entry = {
            "epoch": epoch,
            "easy": float(easy),
            "hard": float(hard),
            "histogram": histogram.tolist(),
            "alpha": float(alpha),
            "loss": float(7 - 5 * mean),
            "top1": float(80 * mean),
        }
        if probe and epoch % max(1, epochs // 5) == 0:
            entry["probe"] = {
                way: {"easy": float(easy) * (1 - 0.1 * i), "hard": float(hard) * (0.8 + 0.1 * i)}
                for i, way in enumerate(WAYS)
            }
        entries.append(entry)
    return record_of(tiny(epochs=epochs, **recipe), seed, 70.0, evolution=entries)


ONE = {"DeiT-S": [run()]}
THREE = {
    "DeiT-T": [run(centre=0.3), run(centre=0.3, seed=1)],
    "DeiT-S": [run()],
    "DeiT-B": [run(centre=0.22)],
}
SMOKED = {"DeiT-T": [run(25, centre=0.1)], "DeiT-S": [run(25, centre=0.3)]}
TOO_SHORT = {"DeiT-T": [run(5)]}
SEVEN = {f"{number} {LONG}": [run(25, centre=0.05 * number)] for number in range(7)}
RGB = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3), dtype=np.uint8)
MAPS = {
    name: np.random.default_rng(1).random((10, 3, 3)) for name in ("random erasing", "PatchErasing", LONG)
}

FIGURES = {
    "process of one": lambda: learning_process(ONE),
    "process of three": lambda: learning_process(THREE),
    "process at smoke": lambda: learning_process(SMOKED),
    "process of five epochs": lambda: learning_process(TOO_SHORT),
    "process of seven long names": lambda: learning_process(SEVEN, title=LONG),
    "thresholds": lambda: thresholds(ONE["DeiT-S"]),
    "thresholds at smoke": lambda: thresholds(SMOKED["DeiT-T"]),
    "easy samples": lambda: easy_samples(THREE),
    "easy samples of seven": lambda: easy_samples(SEVEN),
    "overfitting": lambda: overfitting(ONE),
    "overfitting of two at smoke": lambda: overfitting(SMOKED),
    "schedule": lambda: static_schedule(Periods()),
    "schedule and dynamic": lambda: static_schedule(Periods(0.0, 1.0), measured=THREE),
    "erasing": lambda: erasing_difficulty(THREE),
    "erasing at smoke": lambda: erasing_difficulty({LONG: SMOKED["DeiT-T"]}),
    "maps": lambda: activation_sheet(RGB, MAPS),
    "three maps": lambda: activation_sheet(RGB[:3], {name: maps[:3] for name, maps in MAPS.items()}),
    "maps of wide images": lambda: activation_sheet(RGB[:, :3], MAPS),
}
every_figure = pytest.mark.parametrize("name", FIGURES)


@cache
def drawn(name):
    """A figure, drawn once: what looks at it leaves it as it is."""
    return FIGURES[name]()


# --- what can be seen ----------------------------------------------------------------------


def line_of(axes, x, y):
    """The only line of these data."""
    xy = np.column_stack([x, y])
    (line,) = [line for line in axes.lines if np.array_equal(line.get_xydata(), xy)]
    return line


def shades_of(axes):
    """(colour, begin, end) of the backgrounds and bars of axes, row after row."""
    return [
        (to_hex(patch.get_facecolor()), patch.get_x(), patch.get_x() + patch.get_width())
        for patch in axes.patches
    ]


def shades(periods, length):
    """The same as periods of a training of this length ask for."""
    borders = [0.0, periods.formation_end * length, periods.exploration_start * length, length]
    return [
        (colour, pytest.approx(begin), pytest.approx(end))
        for colour, begin, end in zip(PERIODS.values(), borders, borders[1:], strict=False)
    ]


def visible_texts(figure):
    """(text, box in pixels) of all that a reader sees."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    unseen |= {id(tick.label1), id(tick.label2)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in unseen:
            yield text, text.get_window_extent(renderer)


def notes_of(figure):
    """What stands below the axes."""
    return [text for text in figure.texts if text.get_text() != figure.get_suptitle()]


def words(figure):
    """All that can be read, with single spaces."""
    return [re.sub(r"\s+", " ", text.get_text()) for text, _ in visible_texts(figure)]


def overlap(a, b):
    """Whether two boxes share more than a pixel's width."""
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


def contrast(colour):
    """Of a text on the figure's background, by the rule of WCAG 2."""

    def luminance(value):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(value)]
        return np.dot([0.2126, 0.7152, 0.0722], parts)

    dark, light = sorted(luminance(value) for value in (colour, PAPER))
    return (light + 0.05) / (dark + 0.05)


# --- what a figure shows is what the record holds ------------------------------------------


@pytest.mark.parametrize("runs", [ONE, THREE, SMOKED], ids=["one", "three", "smoke"])
def test_the_learning_process_draws_each_share_as_measured_and_as_fitted_and_the_rate(runs):
    shares, rates, _ = learning_process(runs).axes
    assert len(shares.lines) == 4 * len(runs)
    for (colour, _), records in zip(LOOKS, runs.values(), strict=False):
        found = mean_evolution(records)
        for measured, fitted, dashes in (
            (found.easy, found.fitted_easy, "-"),
            (found.hard, found.fitted_hard, "--"),
        ):
            thin = line_of(shares, found.epochs, 100 * measured)
            thick = line_of(shares, found.epochs, 100 * fitted)
            assert thin.get_linewidth() < thick.get_linewidth()
            assert {to_hex(line.get_color()) for line in (thin, thick)} == {colour}
            assert thick.get_linestyle() == dashes
        kept = found.steady
        assert to_hex(line_of(rates, found.epochs[kept], 100 * found.rate[kept]).get_color()) == colour


def test_without_a_fit_the_measured_shares_are_drawn_and_the_reason_is_said():
    figure = learning_process(TOO_SHORT)
    shares, rates, _ = figure.axes
    found = evolution(TOO_SHORT["DeiT-T"][0])
    assert len(shares.lines) == 2
    assert line_of(shares, found.epochs, 100 * found.easy).get_linestyle() == "-"
    assert line_of(shares, found.epochs, 100 * found.hard).get_linestyle() == "--"
    assert len(rates.lines) == 0
    said = words(figure)
    assert found.reason in said
    assert f"no periods: {found.reason.split('. ')[0]}" in said
    assert "least-squares fit" not in said


def test_a_single_runs_periods_shade_its_panels_and_are_named():
    figure = learning_process(ONE)
    periods = evolution(ONE["DeiT-S"][0]).periods
    for axes in figure.axes:
        assert shades_of(axes) == shades(periods, 300)
    legend = [text.get_text() for text in figure.legends[2].get_texts()]
    assert legend == ["T1 formation", "T2 growth", "T3 exploration"] == list(PERIODS)
    assert [to_hex(patch.get_facecolor()) for patch in figure.legends[2].get_patches()] == list(
        PERIODS.values()
    )


def test_the_periods_of_several_runs_are_bars_one_below_the_other():
    shares, rates, strip = learning_process(THREE).axes
    found = [mean_evolution(records).periods for records in THREE.values()]
    assert len(set(found)) == 3
    assert shades_of(strip) == [shade for periods in found for shade in shades(periods, 300)]
    middles = [patch.get_y() + patch.get_height() / 2 for patch in strip.patches]
    assert middles == pytest.approx([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert strip.yaxis_inverted()
    assert [label.get_text() for label in strip.get_yticklabels()] == ["DeiT-T (2 seeds)", "DeiT-S", "DeiT-B"]
    assert shades_of(shares) == shades_of(rates) == []
    dotted = [line.get_xdata()[0] for line in rates.lines if line.get_linestyle() == ":"]
    borders = [border for periods in found for border in (periods.formation_end, periods.exploration_start)]
    assert dotted == pytest.approx([300 * border for border in borders])


def test_names_stand_in_the_bars_in_which_they_fit():
    figure = learning_process(ONE)
    strip = figure.axes[2]
    bars = [patch.get_window_extent() for patch in strip.patches]
    named = {text.get_text(): text.get_window_extent() for text in strip.texts}
    assert {"T2 growth", "T3 exploration"} <= named.keys()
    for text, box in named.items():
        (number,) = [i for i, name in enumerate(PERIODS) if name.startswith(text)]
        assert bars[number].x0 <= box.x0 <= box.x1 <= bars[number].x1


@pytest.mark.parametrize("draw", [learning_process, overfitting])
def test_where_there_are_no_periods_the_reason_stands(draw):
    figure = draw(SMOKED)
    found = [mean_evolution(records) for records in SMOKED.values()]
    assert [one.periods for one in found].count(None) >= 1
    for one in found:
        if one.periods is None:
            assert f"no periods: {one.reason.split('. ')[0]}" in words(figure)


def test_thresholds_are_read_off_the_histograms_of_one_run():
    figure = thresholds(ONE["DeiT-S"])
    (record,) = ONE["DeiT-S"]
    shares, rates, _ = figure.axes
    assert THRESHOLDS == ((0.7, 0.4), (0.8, 0.3), (0.9, 0.1))
    for easy_above, hard_below in THRESHOLDS:
        for share in proportions(record, easy_above=easy_above, hard_below=hard_below):
            line_of(shares, np.arange(1, 301), 100 * share)
        found = evolution(record, easy_above=easy_above, hard_below=hard_below)
        line_of(rates, found.epochs[found.steady], 100 * found.rate[found.steady])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "easy\u00a0>\u00a00.7, hard\u00a0<\u00a00.4",
        "easy\u00a0>\u00a00.8, hard\u00a0<\u00a00.3",
        "easy\u00a0>\u00a00.9, hard\u00a0<\u00a00.1",
    ]


def test_easy_samples_shows_shares_loss_and_accuracy_within_the_recipes_periods():
    own = Periods(0.1, 0.4)
    runs = {name: [run(centre=centre, periods=own)] for name, centre in (("none", 0.3), ("ME in T1-2", 0.2))}
    figure = easy_samples(runs)
    shares, loss, top1 = figure.axes
    epochs = np.arange(1, 301)
    for number, (record,) in enumerate(runs.values()):
        entries = record.evolution
        lines = [
            line_of(shares, epochs, [100 * entry["easy"] for entry in entries]),
            line_of(shares, epochs, [100 * entry["hard"] for entry in entries]),
            line_of(loss, epochs, [entry["loss"] for entry in entries]),
            line_of(top1, epochs, [entry["top1"] for entry in entries]),
        ]
        assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "-"]
        assert {to_hex(line.get_color()) for line in lines} == {LOOKS[number][0]}
    for axes in figure.axes:
        assert shades_of(axes) == shades(own, 300)


def test_arms_whose_recipes_place_the_periods_differently_are_refused():
    runs = {"none": [run()], "ME in T1": [run(periods=Periods(0.1, 0.4))]}
    with pytest.raises(ValueError, match=r"place their periods differently, .*'ME in T1': \(0\.1, 0\.4\)"):
        easy_samples(runs)


def test_overfitting_shows_shares_beside_accuracy_within_the_periods_found():
    figure = overfitting(ONE)
    shares, top1, strip = figure.axes
    entries = ONE["DeiT-S"][0].evolution
    line_of(shares, np.arange(1, 301), [100 * entry["easy"] for entry in entries])
    line_of(shares, np.arange(1, 301), [100 * entry["hard"] for entry in entries])
    line_of(top1, np.arange(1, 301), [entry["top1"] for entry in entries])
    found = evolution(ONE["DeiT-S"][0]).periods
    for axes in (shares, top1, strip):
        assert shades_of(axes) == shades(found, 300)


@pytest.mark.parametrize("rule", [StaticAlpha(), StaticAlpha(formation=0.2, exploration=0.3, final=1.5)])
def test_the_static_schedule_is_the_rules_alpha_over_shaded_periods(rule):
    periods = Periods(0.1, 0.35)
    (axes,) = static_schedule(periods, rule=rule).axes
    (line,) = axes.lines
    progress, alphas = line.get_xydata().T
    assert (progress[0], progress[-1]) == (0, 100)
    assert alphas == pytest.approx([static_alpha(t / 100, periods, rule=rule) for t in progress], abs=1e-12)
    assert shades_of(axes) == shades(periods, 100)


def test_alphas_that_runs_measured_are_drawn_with_the_schedule():
    (axes,) = static_schedule(Periods(), measured=THREE).axes
    assert len(axes.lines) == 4
    expected = np.mean([[entry["alpha"] for entry in one.evolution] for one in THREE["DeiT-T"]], axis=0)
    line_of(axes, 100 * (np.arange(1, 301) / 300), expected)


def test_erasing_difficulty_shows_both_shares_by_the_way_images_were_shown():
    figure = erasing_difficulty({"DeiT-B": [run()], "Swin-B": [run(centre=0.3)]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "DeiT-B: easy",
        "DeiT-B: hard",
        "Swin-B: easy",
        "Swin-B: hard",
    ]
    for row, record in enumerate((run(), run(centre=0.3))):
        seen = looks([record])
        assert seen.epochs.tolist() == [60, 120, 180, 240, 300]
        for column, shares in enumerate((seen.easy, seen.hard)):
            axes = figure.axes[2 * row + column]
            assert len(axes.lines) == 3
            for way, (colour, marker) in zip(WAYS, LOOKS, strict=False):
                line = line_of(axes, seen.epochs, 100 * shares[way])
                assert (to_hex(line.get_color()), line.get_marker()) == (colour, marker)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["clean", "random erasing", "PatchErasing"]


def test_without_looks_there_is_no_figure_of_them():
    blind = run(25, probe=False)
    with pytest.raises(ValueError, match=f"run {blind.run_id} has no looks of the difficulty probe"):
        erasing_difficulty({"DeiT-B": [run(25)], "Swin-B": [blind]})


# --- sheets of maps ------------------------------------------------------------------------


def row_of(figure, number):
    """The images drawn in a row of a sheet, from left to right."""
    return sorted(figure.axes[number].images, key=lambda image: image.get_extent()[0])


def test_the_sheets_first_row_are_the_images_and_the_others_their_maps():
    maps = {name: MAPS[name] for name in ("random erasing", "PatchErasing")}
    figure = activation_sheet(RGB[:2], {name: some[:2] for name, some in maps.items()})
    names = [axes.get_ylabel() for axes in figure.axes[:3]]
    assert names == ["images", "random\nerasing", "PatchErasing"]
    top = row_of(figure, 0)
    assert np.array_equal([image.get_array() for image in top], RGB[:2])
    for row, some in enumerate(maps.values(), start=1):
        drawn_row = row_of(figure, row)
        below, above = drawn_row[::2], drawn_row[1::2]
        assert np.array_equal([image.get_array() for image in below], RGB[:2])
        for column, image in enumerate(above):
            np.testing.assert_allclose(image.get_array(), 100 * some[column] / some[column].max())
            assert (image.get_clim(), 0 < image.get_alpha() < 1) == ((0, 100), True)
        places = [image.get_extent() for image in top]
        assert places == [image.get_extent() for image in below] == [image.get_extent() for image in above]
    assert places[0][1] < places[1][0]


def test_more_images_than_fit_beside_each_other_go_on_below():
    figure = activation_sheet(RGB, {"PatchErasing": MAPS["PatchErasing"]})
    assert [axes.get_ylabel() for axes in figure.axes[:5]] == [
        "images",
        "PatchErasing",
        "",
        "images",
        "PatchErasing",
    ]
    assert np.array_equal([image.get_array() for image in (*row_of(figure, 0), *row_of(figure, 3))], RGB)
    assert [len(axes.images) for axes in figure.axes[:5]] == [8, 16, 0, 2, 4]
    maps = [image.get_array().max() for image in row_of(figure, 4)[1::2]]
    np.testing.assert_allclose(
        row_of(figure, 4)[1].get_array()[0], 100 * MAPS["PatchErasing"][8][0] / MAPS["PatchErasing"][8].max()
    )
    assert maps == pytest.approx([100, 100])


@pytest.mark.parametrize("images", [RGB, RGB[:, :3], RGB[:, :, :3]], ids=["square", "wide", "tall"])
def test_images_keep_their_proportions_and_stay_inside_of_the_figure(images):
    figure = activation_sheet(images, {"PatchErasing": MAPS["PatchErasing"]})
    figure.draw_without_rendering()
    height, width = images.shape[1:3]
    for image in (*row_of(figure, 0), *row_of(figure, 4)):
        box = image.get_window_extent()
        assert box.height / box.width == pytest.approx(height / width, rel=1e-3)
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert box.width / figure.dpi > 0.5


def test_a_map_of_nothing_shows_nothing():
    figure = activation_sheet(RGB[:1], {"PatchErasing": np.zeros((1, 3, 3))})
    assert (row_of(figure, 1)[1].get_array() == 0).all()


def with_value(value):
    maps = MAPS["PatchErasing"][:2].copy()
    maps[1, 2, 0] = value
    return maps


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        (
            RGB / 255,
            MAPS["PatchErasing"],
            r"images of type float64 and shape \(10, 12, 12, 3\): uint8 .* needed",
        ),
        (
            RGB[..., 0],
            MAPS["PatchErasing"],
            r"images of type uint8 and shape \(10, 12, 12\): .* \(N, H, W, 3\)",
        ),
        (RGB[:0], MAPS["PatchErasing"][:0], r"images of .* shape \(0, 12, 12, 3\)"),
        (
            RGB[:2],
            MAPS["PatchErasing"],
            r"maps of PatchErasing have shape \(10, 3, 3\): \(2, h, w\) is needed",
        ),
        (RGB[:2], MAPS["PatchErasing"][0], r"maps of PatchErasing have shape \(3, 3\)"),
        (RGB[:2], with_value(-0.1), "maps of PatchErasing have values below 0 or not finite"),
        (RGB[:2], with_value(np.nan), "maps of PatchErasing have values below 0 or not finite"),
        (RGB[:2], with_value(np.inf), "maps of PatchErasing have values below 0 or not finite"),
    ],
)
def test_images_and_maps_that_do_not_fit_are_refused(images, maps, message):
    with pytest.raises(ValueError, match=message):
        activation_sheet(images, {"PatchErasing": maps})


# --- a figure can be read ------------------------------------------------------------------


def maker(number):
    return f"run {number:012x}, seed {number}, commit 479cd09 with changes, scale smoke"


@every_figure
def test_no_text_is_cut_off_or_covered_by_another(name):
    figure = drawn(name)
    with style(), signed(figure, made_by=[maker(number) for number in range(20)], scale="smoke"):
        texts = list(visible_texts(figure))
    assert {SMOKE, figure.get_suptitle()} <= {text.get_text() for text, _ in texts}
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    assert [(a, b) for (a, one), (b, other) in combinations(texts, 2) if overlap(one, other)] == []


@every_figure
def test_no_legend_covers_data_or_the_lines_at_the_bottom(name):
    figure = drawn(name)
    boxes = [legend.get_window_extent() for legend in figure.legends]
    panels = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(overlap(legend, panel) for legend in boxes for panel in panels)
    assert not any(overlap(one, other) for one, other in combinations(boxes, 2))
    with style(), signed(figure, made_by=[maker(1), maker(2), maker(3)], scale="smoke"):
        notes = [text.get_window_extent() for text in notes_of(figure)]
    assert len(notes) == 2
    assert not any(overlap(note, box) for note in notes for box in (*boxes, *panels))


@every_figure
def test_every_axis_with_numbers_says_what_they_are_in(name):
    units = re.compile(r"%|epoch|nats|alpha of Beta\(alpha, alpha\)")
    figure = drawn(name)
    said = [text for text, _ in visible_texts(figure)]
    numbered = 0
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = [tick.label1 for tick in axis.get_major_ticks() if tick.label1 in said]
            if any(re.fullmatch(r"[\d.\u2212]+", label.get_text()) for label in shown):
                numbered += 1
                assert units.search(axis.get_label_text()), axis
    assert numbered >= 1


@every_figure
def test_text_is_dark_on_a_light_ground_of_its_own_and_not_small(name):
    figure = drawn(name)
    assert (to_hex(figure.get_facecolor()), figure.get_facecolor()[3]) == (PAPER, 1)
    assert min(to_rgb(PAPER)) > 0.96
    with style(), signed(figure, made_by=["no run"], scale="smoke"):
        for text, _ in visible_texts(figure):
            assert text.get_fontsize() >= POINTS == 8
            assert contrast(text.get_color()) >= 4.5, text


def test_lines_differ_in_colours_that_all_can_tell_apart_and_in_markers():
    colours, markers = zip(*LOOKS, strict=True)
    assert set(colours) <= OKABE_ITO - {"#f0e442"}
    assert len(set(colours)) == len(set(markers)) == len(LOOKS)
    for line in figure_lines(learning_process(SEVEN)):
        assert (to_hex(line.get_color()), line.get_marker()) in {
            *LOOKS,
            *((colour, "None") for colour in colours),
        }


def figure_lines(figure):
    return [line for axes in figure.axes for line in axes.lines]


def test_markers_are_few_and_those_of_two_lines_at_different_epochs():
    rates = learning_process(THREE).axes[1]
    marked = [
        set(range(*line.get_markevery()[:1], len(line.get_xdata()), line.get_markevery()[1]))
        for line in rates.lines
        if line.get_marker() != "None"
    ]
    assert len(marked) == 3
    assert all(8 <= len(places) <= 10 for places in marked)
    assert not any(a & b for a, b in combinations(marked, 2))


def test_more_lines_than_can_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="8 lines to draw: 1 to 7 can be told apart"):
        learning_process({**SEVEN, "one more": [run(25)]})


@pytest.mark.parametrize("draw", [learning_process, easy_samples, overfitting, erasing_difficulty])
def test_no_runs_are_no_figure(draw):
    with pytest.raises(ValueError, match="no runs to draw"):
        draw({})
    with pytest.raises(ValueError, match="the mean of no runs"):
        draw({"DeiT-T": []})


def test_names_with_signs_of_formulas_are_shown_as_they_are():
    figure = learning_process({r"$\frac$ of 5": [run(25)]})  # no formula: to read it as one fails
    assert words(figure).count(r"$\frac$ of 5") == 2


def test_epochs_are_whole_numbers():
    (*_, strip) = learning_process({"DeiT-T": [run(2)]}).axes
    assert all(tick == int(tick) for tick in strip.get_xticks())


def test_wrapping_loses_no_words_unless_there_are_too_many_lines():
    text = "an evolution of few words " * 12
    with style():
        assert " ".join(wrapped(text, 3.0)).split() == text.split()
        cut = wrapped(text, 3.0, lines=2)
    assert len(cut) == 2
    assert cut[1].endswith(" \u2026")
    assert text.startswith(" ".join(cut)[:-2])


# --- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["process of one", "thresholds", "easy samples", "overfitting", "schedule", "erasing", "maps"]
)
def test_the_same_figure_gives_the_same_bytes(name, tmp_path):
    first = save(FIGURES[name](), tmp_path / "first", made_by=["run 1"], scale="small")
    again = save(drawn(name), tmp_path / "again", made_by=["run 1"], scale="small")
    assert [path.name for path in first] == ["first.png", "first.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert len({path.read_bytes() for path in first}) == 2


SAVE = """
from pathlib import Path
import sys
from tests.test_figures import FIGURES, maker, save
save(FIGURES["process of three"](), Path(sys.argv[1]), made_by=[maker(1)], scale="smoke")
"""


def test_another_process_with_other_settings_gives_the_same_bytes(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsvg.hashsalt: other\nxtick.direction: in\n")
    other = {**environment(), "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "7"}
    subprocess.run(python("-c", SAVE, tmp_path / "theirs"), env=other, check=True)
    ours = save(drawn("process of three"), tmp_path / "ours", made_by=[maker(1)], scale="smoke")
    theirs = [path.with_stem("theirs") for path in ours]
    assert [digest(path) for path in ours] == [digest(path) for path in theirs]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_both_files_can_be_opened_and_are_opaque(tmp_path):
    png, svg = save(drawn("process of one"), tmp_path / "v1.2 process", made_by=["run 1"], scale="paper")
    assert (png.name, svg.name) == ("v1.2 process.png", "v1.2 process.svg")
    with Image.open(png) as image:
        assert (image.convert("RGBA").getextrema()[3], image.width) == ((255, 255), 1440)
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert PAPER in svg.read_text()


def metadata(png, svg):
    """What both files say of the figure."""
    purl = "{http://purl.org/dc/elements/1.1/}"
    tree = ElementTree.parse(svg)
    with Image.open(png) as image:
        yield image.text
    yield {
        name.title(): element.text
        for name in ("title", "description")
        for element in tree.iter(f"{purl}{name}")
    }
    assert not [element for element in tree.iter() if element.tag in (f"{purl}date", f"{purl}creator")]


def test_the_metadata_name_every_run_and_hold_no_date(tmp_path):
    makers = [maker(number) for number in range(40)]
    paths = save(drawn("process of one"), tmp_path / "figure", made_by=makers, scale="small")
    wanted = {"Title": "Learning process", "Description": "\n".join(["made by", *makers])}
    assert list(metadata(*paths)) == [wanted, wanted]


def bottom(figure, makers, scale="small"):
    with style(), signed(figure, made_by=makers, scale=scale):
        return [text.get_text() for text in notes_of(figure)]


def test_the_line_at_the_bottom_names_the_runs():
    figure = drawn("process of one")
    assert bottom(figure, [maker(1)]) == [f"made by {maker(1)}"]
    (line,) = bottom(figure, [maker(1), maker(2)])
    assert line.replace("\n", " ") == f"made by {maker(1)}; {maker(2)}"


def test_where_there_are_too_many_the_line_says_how_many_more():
    (line,) = bottom(drawn("process of one"), [maker(number) for number in range(40)])
    shown = line.count("run ")
    assert shown >= 2
    assert line.replace("\n", " ").endswith(f"; and {40 - shown} more, named inside of the file")
    assert line.count("\n") == 1


def test_a_single_name_that_is_too_long_is_cut():
    (line,) = bottom(drawn("process of one"), ["run " + "x" * 1000])
    assert line.count("\n") == 1
    assert line.endswith("\u2026")


@pytest.mark.parametrize("scale", ["smoke", "small", "paper", None])
def test_only_toy_runs_are_said_to_say_nothing(scale, tmp_path):
    figure = drawn("process of one")
    assert (SMOKE in bottom(figure, [maker(1)], scale)) == (scale == "smoke")
    paths = save(figure, tmp_path / "figure", made_by=["run 1"], scale=scale)
    assert [SMOKE in about["Description"] for about in metadata(*paths)] == [scale == "smoke"] * 2
    assert SMOKE == "smoke: says nothing about the paper"


def test_saving_leaves_the_figure_as_it_was(tmp_path):
    figure = learning_process(ONE)
    before = words(figure)
    save(figure, tmp_path / "figure", made_by=["run 1"], scale="smoke")
    assert words(figure) == before


def test_a_figure_of_unknown_origin_or_scale_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="made_by is empty"):
        save(drawn("process of one"), tmp_path / "figure", made_by=[], scale="small")
    with pytest.raises(ValueError, match="scale 'smok': one of smoke, small, paper, or None"):
        save(drawn("process of one"), tmp_path / "figure", made_by=["run 1"], scale="smok")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_there_in_full_or_not_at_all(tmp_path, monkeypatch):
    figure = learning_process(TOO_SHORT)
    old = [path.read_bytes() for path in save(figure, tmp_path / "figure", made_by=["run 1"], scale=None)]

    def cut_off(path, **_):
        path.write_bytes(b"half")
        raise OSError("no room")

    monkeypatch.setattr(figure, "savefig", cut_off)
    with pytest.raises(OSError, match="no room"):
        save(figure, tmp_path / "figure", made_by=["run 2"], scale=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figure.svg"]
    assert [(tmp_path / f"figure.{kind}").read_bytes() for kind in ("png", "svg")] == old


def test_runs_say_what_made_them():
    clean = replace(run(25), run_id="0123456789ab", environment={"commit": "479cd09aabbccdd", "dirty": False})
    dirty = replace(clean, seed=3, environment={"commit": "479cd09aabbccdd", "dirty": True})
    unknown = replace(clean, environment={"commit": None, "dirty": None})
    assert made_by([clean, dirty, clean], scale="paper") == (
        "run 0123456789ab, seed 0, commit 479cd09, scale paper",
        "run 0123456789ab, seed 3, commit 479cd09 with changes, scale paper",
    )
    assert made_by([unknown], scale=None) == ("run 0123456789ab, seed 0, commit unknown",)


# --- the surroundings ----------------------------------------------------------------------

ALONE = """
import sys
import matplotlib
settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
from pathlib import Path
import numpy as np
from dcvit.figures import static_schedule
from dcvit.recipe import Periods
from dcvit.saving import save
from dcvit.sheets import activation_sheet
for number, figure in enumerate((
    static_schedule(Periods()),
    activation_sheet(np.zeros((1, 4, 4, 3), np.uint8), {"a": np.ones((1, 2, 2))}),
)):
    save(figure, Path(sys.argv[1]) / str(number), made_by=["no run"], scale=None)
assert settings() == before, "the user's settings are the user's"
sys.exit(str(sys.modules.keys() & {"torch", "matplotlib.pyplot", "tkinter"}))
"""


def test_drawing_needs_no_torch_no_pyplot_and_leaves_the_users_settings(tmp_path):
    child = subprocess.run(python("-c", ALONE, tmp_path), env=environment(), capture_output=True, text=True)
    assert child.stderr == "set()\n"


def test_modules_can_be_imported_without_matplotlib_and_figures_say_what_they_need(monkeypatch):
    code = "import sys, dcvit.figures, dcvit.sheets, dcvit.saving; sys.exit(str('matplotlib' in sys.modules))"
    child = subprocess.run(python("-c", code), env=environment(), capture_output=True, text=True)
    assert child.stderr == "False\n"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (
        lambda: static_schedule(Periods()),
        lambda: activation_sheet(RGB, MAPS),
        lambda: learning_process(ONE),
    ):
        with pytest.raises(
            EnvironmentProblem, match=r"figures need matplotlib: python -m pip install 'dcvit\[plots\]'"
        ):
            draw()
