"""How this package's figures look. No torch.

matplotlib (the extra `plots`) is imported by what needs it, never pyplot, and its settings are changed for the
moment of drawing only. Sizes are in inches as printed; no text is smaller than 8 points.

Legibility: a background of its own, so that a figure looks the same on light and dark pages; colours of Okabe
and Ito, which colour-blind people can tell apart; and never colour alone: each line has a marker of its own too.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from dcvit.curves import Evolution
from dcvit.errors import EnvironmentProblem
from dcvit.recipe import Periods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2  # of every figure: two columns of a paper
EDGE = 0.08  # kept free all around
GAP = 0.06  # between what stands above the axes
FOOT = 0.62  # high: the warning of toy runs, and two lines for what made the figure
POINTS = 8  # of text
TITLE: dict[str, Any] = {"size": 9.5, "weight": "bold"}
PAPER, INK, QUIET, GRID = "#fcfcfa", "#1c1c1c", "#555555", "#e2e2de"
ROW = 0.36  # high, for the periods of one name: two lines of text
NAME = 20  # characters of a line of a name beside an axis
MARGIN = 1.015  # of an axis of time: the last marker is whole
SHORTEST = 10  # characters of a line
MARKERS = 8  # of a line, about
# Okabe and Ito's colours but for yellow, which is too pale on white, and a marker for each
LOOKS = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#000000", "v"),
    ("#e69f00", "P"),
    ("#56b4e9", "X"),
)
PERIODS = {"T1 formation": "#d4d4d0", "T2 growth": "#f9e4ba", "T3 exploration": "#dcebf5"}
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": POINTS,
    **dict.fromkeys(
        ("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), POINTS
    ),
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "text.parse_math": False,  # a name may hold a $
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "figure.dpi": 200,  # what is measured while drawing is what is saved
    "savefig.dpi": 200,
    "svg.hashsalt": "dcvit",  # the names inside of an SVG file come from its contents alone
    "svg.fonttype": "path",  # text looks the same without the font
}


def style() -> AbstractContextManager[None]:
    """Within it, matplotlib's defaults and the settings above hold, whatever the user's own are.

    EnvironmentProblem if matplotlib is missing.
    """
    try:
        from matplotlib import style as styles
    except ImportError as error:
        raise EnvironmentProblem("figures need matplotlib: python -m pip install 'dcvit[plots]'") from error
    context: AbstractContextManager[None] = styles.context(SETTINGS, after_reset=True)
    return context


# --- lines and their keys ------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What tells one line from the others."""

    colour: str
    marker: str
    offset: float  # of its markers, in distances between two: they do not hide those of other lines

    def look(self, count: int) -> dict[str, Any]:
        """For `Axes.plot` of a line of `count` points: its colour, and a marker at about eight of them."""
        step = max(1, count // MARKERS)
        return {"color": self.colour, "marker": self.marker, "markevery": (int(self.offset * step), step)}


def lines_for(names: Iterable[str]) -> dict[str, Line]:
    """A line for each name, in order; ValueError where there are none, or more than can be told apart."""
    names = list(names)
    if not 1 <= len(names) <= len(LOOKS):
        raise ValueError(
            f"{len(names)} lines to draw: 1 to {len(LOOKS)} can be told apart. Draw several figures instead"
        )
    return {
        name: Line(colour, marker, offset=number / len(names))
        for number, (name, (colour, marker)) in enumerate(zip(names, LOOKS, strict=False))
    }


def key(label: str, **look: Any) -> Any:
    """A line's entry in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label="\n".join(textwrap.wrap(label, 80)), **look)


def keys_of(lines: Mapping[str, Line]) -> list[Any]:
    """A legend's entries for lines that differ in colour and marker."""
    return [key(name, color=line.colour, marker=line.marker) for name, line in lines.items()]


def period_keys() -> list[Any]:
    """A legend's entries for the shades of the periods."""
    from matplotlib.patches import Patch

    return [Patch(facecolor=colour, label=name) for name, colour in PERIODS.items()]


def shade(axes: "Axes", periods: Periods, length: float) -> None:
    """The three periods as a background of axes on which training takes from 0 to `length`."""
    borders = (0.0, periods.formation_end, periods.exploration_start, 1.0)
    for colour, begin, end in zip(PERIODS.values(), borders, borders[1:], strict=False):
        axes.axvspan(begin * length, end * length, facecolor=colour, edgecolor="none", zorder=0)


# --- the sheet -----------------------------------------------------------------------------


def panels(heights: Sequence[float], *, columns: int = 1) -> "tuple[Figure, list[list[Axes]]]":
    """A figure with rows of axes, of heights in inches; those of a column share the x axis. Within `style`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    grid = figure.subplots(
        len(heights), columns, squeeze=False, sharex="col", gridspec_kw={"height_ratios": heights}
    )
    return figure, [list(row) for row in grid]


def arrange(figure: "Figure", *, title: str, keys: Sequence[Sequence[Any]] = ()) -> None:
    """Puts title, legends and axes above one another, adds what room they need, and fixes their places.

    There is a legend for each sequence of keys that is not empty. They stand outside of the axes, so that they
    can't cover data.
    """
    axes_height = figure.get_figheight()
    heading = wrapped(title, WIDTH - 2 * EDGE, **TITLE)
    title_height = len(heading) * 1.4 * TITLE["size"] / 72 + GAP
    legends = [_legend(figure, group) for group in keys if group]
    legend_heights = [legend.get_window_extent().height / figure.dpi + GAP for legend in legends]
    height = EDGE + title_height + sum(legend_heights) + GAP + axes_height + FOOT
    figure.set_size_inches(WIDTH, height)

    left, top = EDGE / WIDTH, height - EDGE
    above = [
        figure.suptitle("\n".join(heading), x=left, y=top / height, ha="left", va="top", **TITLE),
        *legends,
    ]
    top -= title_height
    for legend, legend_height in zip(legends, legend_heights, strict=True):
        legend.set_bbox_to_anchor((left, top / height), transform=figure.transFigure)
        top -= legend_height
    for text in above:
        text.set_in_layout(False)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(left, FOOT / height, 1 - 2 * left, axes_height / height))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:  # the solver's last digits differ from one time to the next
        left, bottom, width, height = (round(value, 6) for value in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def _legend(figure: "Figure", keys: Sequence[Any]) -> Any:
    """A legend in as few rows as fit."""
    for columns in range(len(keys), 0, -1):
        legend = figure.legend(handles=keys, loc="upper left", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= (WIDTH - 2 * EDGE) * figure.dpi:
            break
        legend.remove()
    return legend


def wrapped(text: str, inches: float, *, lines: int | None = None, **font: Any) -> list[str]:
    """The text in lines of at most `inches`; with an ellipsis where it needs more than `lines`. Within `style`."""
    usual = len(text) * inches / max(width_of(text, **font), 0.01)  # characters of a line
    for width in range(max(round(1.2 * usual), SHORTEST), SHORTEST - 1, -1):
        found = textwrap.wrap(text, width, max_lines=lines, placeholder=" \u2026")
        if all(width_of(line, **font) <= inches for line in found):
            break
    return found


def width_of(text: str, **font: Any) -> float:
    """Of a line of text, in inches; a little more than it is, since pixels round. Within `style`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    points, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(**font), ismath=False)
    return float(1.02 * points / 72)


# --- epochs and periods --------------------------------------------------------------------


def epoch_axis(axes: "Axes", epochs: int) -> None:
    """Names and limits of an x axis of epochs, with whole numbers only."""
    axes.set_xlim(0, MARGIN * epochs)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)


def draw_periods(strip: "Axes", curves: Mapping[str, Evolution], *, beside: Sequence["Axes"]) -> None:
    """A bar for each name, of its periods; where there is one name, they are the background of `beside` as well."""
    for row, found in enumerate(curves.values()):
        if found.periods is None:
            continue
        count = len(found.epochs)
        borders = [0.0, found.periods.formation_end * count, found.periods.exploration_start * count, count]
        widths = np.diff(borders)
        strip.barh([row] * 3, widths, left=borders[:3], height=0.82, color=list(PERIODS.values()))
        if len(curves) == 1:
            for axes in beside:
                shade(axes, found.periods, count)
    names = ["\n".join(textwrap.wrap(name, NAME, max_lines=2, placeholder=" \u2026")) for name in curves]
    strip.set_yticks(range(len(curves)), names)
    strip.set_ylim(len(curves) - 0.5, -0.5)
    strip.tick_params(axis="y", length=0)
    strip.spines["left"].set_visible(False)
    strip.grid(False)
    epoch_axis(strip, max(len(found.epochs) for found in curves.values()))


def write_periods(figure: "Figure", strip: "Axes", curves: Mapping[str, Evolution]) -> None:
    """Names into the bars where they fit, and the reason where there are none; once the axes have their places."""
    per_epoch = strip.get_window_extent().width / figure.dpi / strip.get_xlim()[1]  # inches
    for row, found in enumerate(curves.values()):
        if found.periods is None:
            write(figure, strip, f"no periods: {found.reason.split('. ')[0]}", y=row, lines=2)
            continue
        borders = (0.0, found.periods.formation_end, found.periods.exploration_start, 1.0)
        for name, begin, end in zip(PERIODS, borders, borders[1:], strict=False):
            room = (end - begin) * len(found.epochs) * per_epoch - 0.06
            fitting = [text for text in (name, name.split()[0]) if width_of(text) <= room]
            for text in fitting[:1]:
                middle = (begin + end) / 2 * len(found.epochs)
                strip.text(middle, row, text, ha="center", va="center")


def write(figure: "Figure", axes: "Axes", text: str, *, y: float, lines: int) -> None:
    """A sentence in place of data, across the axes."""
    inches = axes.get_window_extent().width / figure.dpi - 0.2
    found = wrapped(text, inches, lines=lines)
    shown, width = " ".join(found), len(text) // len(found)
    while len(textwrap.wrap(shown, width)) > len(found):  # lines of about one length
        width += 1
    axes.text(sum(axes.get_xlim()) / 2, y, textwrap.fill(shown, width), ha="center", va="center", color=QUIET)
