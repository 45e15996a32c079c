"""The paper's figures, drawn from records: each function takes data values and returns a matplotlib figure. No torch.

`Runs` are records by the name under which they are drawn; several records of one name are seeds of one recipe,
and their mean is drawn. What can't be drawn is a ValueError that says why; without matplotlib (the extra `plots`)
all raise EnvironmentProblem. `saving.save` writes a figure to files, `sheets` has those made of images.
"""

from collections.abc import Mapping, Sequence
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from dcvit.curves import Evolution, looks, mean_evolution, mean_of
from dcvit.drawing import (
    MARGIN,
    QUIET,
    ROW,
    Line,
    arrange,
    draw_periods,
    epoch_axis,
    key,
    keys_of,
    lines_for,
    panels,
    period_keys,
    shade,
    style,
    write,
    write_periods,
)
from dcvit.ledger import Record
from dcvit.recipe import Periods, StaticAlpha
from dcvit.schedules import static_alpha

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[Record]]
Curves = Mapping[str, Evolution]
Lines = Mapping[str, Line]

THRESHOLDS = ((0.7, 0.4), (0.8, 0.3), (0.9, 0.1))  # easy above, hard below; the first pair is chosen here
WAYS = {"clean": "clean", "random_erasing": "random erasing", "patch_erasing": "PatchErasing"}
EASY, HARD = "-", (0, (4, 2))  # how lines of easy and of hard samples are drawn
STEPS = 200  # of the line of a schedule


# --- Figures 1, 2, 6 and 8 -----------------------------------------------------------------


def learning_process(runs: Runs, *, title: str = "Learning process") -> "Figure":
    """Easy and hard shares with their least-squares fits, the assimilation rate and the periods (Fig. 1, 2, 8d-f).

    Thin lines are measured, thick ones fitted. A name without periods gets the reason in their place.
    """
    return _process(_curves(runs), title)


def thresholds(
    records: Sequence[Record],
    *,
    pairs: Sequence[tuple[float, float]] = THRESHOLDS,
    title: str = "Learning process under other thresholds",
) -> "Figure":
    """The same of one recipe under several pairs (easy above, hard below), read off its histograms (Fig. 6, 8a-c)."""
    curves = {
        f"easy\u00a0>\u00a0{easy:g}, hard\u00a0<\u00a0{hard:g}": mean_evolution(
            records, easy_above=easy, hard_below=hard
        )
        for easy, hard in pairs
    }
    return _process(curves, title)


def _process(curves: Curves, title: str) -> "Figure":
    with style():
        lines = lines_for(curves)
        figure, ((shares,), (rates,), (strip,)) = panels((2.4, 1.6, 0.4 + ROW * len(curves)))
        for name, found in curves.items():
            _draw_fits(shares, found, lines[name])
            _draw_rate(rates, found, lines[name], borders=len(curves) > 1)
        _percent_axis(shares, "share of samples, %")
        rates.set_ylim(bottom=0)
        rates.set_ylabel("KAR,\n% of samples per epoch")
        draw_periods(strip, curves, beside=(shares, rates))
        fitted = any(found.rate is not None for found in curves.values())
        if not fitted:
            rates.set_yticks([])
            rates.grid(False)
        arrange(figure, title=title, keys=_keys(lines, curves, fitted=fitted))
        write_periods(figure, strip, curves)
        if not fitted:
            write(figure, rates, next(iter(curves.values())).reason, y=0.5 * rates.get_ylim()[1], lines=4)
    return figure


def _draw_fits(axes: "Axes", found: Evolution, line: Line) -> None:
    """Thin as measured, thick and with markers as fitted; without a fit the markers are on the thin line."""
    both = ((found.easy, found.fitted_easy, EASY), (found.hard, found.fitted_hard, HARD))
    look = line.look(len(found.epochs))
    for measured, fitted, dashes in both:
        if fitted is None:
            axes.plot(found.epochs, 100 * measured, linestyle=dashes, linewidth=0.7, **look)
        else:
            axes.plot(found.epochs, 100 * measured, linewidth=0.7, color=line.colour, alpha=0.7)
            axes.plot(found.epochs, 100 * fitted, linestyle=dashes, linewidth=1.8, **look)


def _draw_rate(axes: "Axes", found: Evolution, line: Line, *, borders: bool) -> None:
    """Without the unsteady ends, as the periods are sought; dotted lines are the borders found."""
    if found.rate is None:
        return
    epochs = found.epochs[found.steady]
    axes.plot(epochs, 100 * found.rate[found.steady], linewidth=1.8, **line.look(len(epochs)))
    if borders and found.periods is not None:
        for border in (found.periods.formation_end, found.periods.exploration_start):
            axes.axvline(border * len(found.epochs), color=line.colour, linestyle=":", linewidth=1)


# --- Figure 3 ------------------------------------------------------------------------------


def easy_samples(runs: Runs, *, title: str = "Easy samples in early periods") -> "Figure":
    """Shares, training loss and top-1 of arms that make samples easy in some periods (Fig. 3a).

    Shaded are the periods of the recipes, in which the arms differ. ValueError if they place these differently.
    """
    curves = _curves(runs)
    periods = _periods_of_recipes(runs)
    longest = max(len(found.epochs) for found in curves.values())
    with style():
        lines = lines_for(curves)
        figure, ((shares,), (loss,), (top1,)) = panels((2.2, 1.4, 1.7))
        _draw_shares(shares, curves, lines)
        _draw_means(loss, runs, lines, "loss", "training loss, nats")
        _draw_means(top1, runs, lines, "top1", "top-1 on test images, %")
        for axes in (shares, loss, top1):
            shade(axes, periods, longest)
        epoch_axis(top1, longest)
        arrange(figure, title=title, keys=[keys_of(lines), _share_keys(), period_keys()])
    return figure


def overfitting(runs: Runs, *, title: str = "More easy samples, no better accuracy") -> "Figure":
    """Shares of easy and hard samples beside top-1, and the periods that were found (Fig. 3b)."""
    curves = _curves(runs)
    with style():
        lines = lines_for(curves)
        figure, ((shares,), (top1,), (strip,)) = panels((2.2, 1.6, 0.4 + ROW * len(curves)))
        _draw_shares(shares, curves, lines)
        _draw_means(top1, runs, lines, "top1", "top-1 on test images, %")
        draw_periods(strip, curves, beside=(shares, top1))
        arrange(figure, title=title, keys=_keys(lines, curves, fitted=False))
        write_periods(figure, strip, curves)
    return figure


def _draw_shares(axes: "Axes", curves: Curves, lines: Lines) -> None:
    for name, found in curves.items():
        look = lines[name].look(len(found.epochs))
        axes.plot(found.epochs, 100 * found.easy, linestyle=EASY, **look)
        axes.plot(found.epochs, 100 * found.hard, linestyle=HARD, **look)
    _percent_axis(axes, "share of samples, %")


def _draw_means(axes: "Axes", runs: Runs, lines: Lines, number: str, label: str) -> None:
    for records, line in zip(runs.values(), lines.values(), strict=True):
        values = mean_of(records, number)
        axes.plot(np.arange(1.0, len(values) + 1), values, **line.look(len(values)))
    axes.set_ylabel(label)


def _periods_of_recipes(runs: Runs) -> Periods:
    """What all recipes say; ValueError if they say different things."""
    said = {name: records[0].recipe["periods"] for name, records in runs.items()}
    found = {name: (at["formation_end"], at["exploration_start"]) for name, at in said.items()}
    if len(set(found.values())) > 1:
        raise ValueError(
            f"the recipes place their periods differently, {found}: draw arms of one table and scale"
        )
    return Periods(*next(iter(found.values())))


# --- Figure 5 ------------------------------------------------------------------------------


def static_schedule(
    periods: Periods,
    *,
    rule: StaticAlpha = StaticAlpha(),
    measured: Runs | None = None,
    title: str = "Alpha of MixUp over training",
) -> "Figure":
    """Alpha by the static rule over training, the periods shaded; with it the alphas that runs measured (Fig. 5)."""
    static = f"static: {rule.formation:g}, cosine to {rule.exploration:g}, line to {rule.final:g}"
    others = {_named(name, records): mean_of(records, "alpha") for name, records in (measured or {}).items()}
    progress = np.linspace(0, 1, STEPS + 1)
    with style():
        lines = lines_for([static, *others])
        figure, ((axes,),) = panels((2.8,))
        alphas = [static_alpha(float(t), periods, rule=rule) for t in progress]
        axes.plot(100 * progress, alphas, linewidth=1.8, **lines[static].look(STEPS))
        for name, alpha_E in others.items():
            done = np.arange(1.0, len(alpha_E) + 1) / len(alpha_E)
            axes.plot(100 * done, alpha_E, **lines[name].look(len(alpha_E)))
        shade(axes, periods, 100)
        axes.set_xlim(0, MARGIN * 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("share of training, %")
        axes.set_ylabel("alpha of Beta(alpha, alpha)")
        arrange(figure, title=title, keys=[keys_of(lines), period_keys()])
    return figure


# --- Figure 9 ------------------------------------------------------------------------------


def erasing_difficulty(runs: Runs, *, title: str = "Difficulty under erasing alone") -> "Figure":
    """Shares of easy and of hard training images, shown clean, with RandomErasing and with PatchErasing (Fig. 9).

    A row for each name. ValueError for runs that the difficulty probe did not look at.
    """
    seen = {_named(name, records): looks(records) for name, records in _some(runs).items()}
    longest = max(len(records[0].evolution) for records in runs.values())
    with style():
        lines = lines_for(WAYS)
        figure, rows = panels((1.7,) * len(seen), columns=2)
        for (name, found), row in zip(seen.items(), rows, strict=True):
            for axes, kind, shares in zip(row, ("easy", "hard"), (found.easy, found.hard), strict=True):
                for way, line in lines.items():
                    axes.plot(found.epochs, 100 * shares[way], color=line.colour, marker=line.marker)
                axes.set_title("\n".join(textwrap.wrap(f"{name}: {kind}", 45)), loc="left")
                _percent_axis(axes, f"{kind} images, %")
        for axes in rows[-1]:
            epoch_axis(axes, longest)
        arrange(figure, title=title, keys=[keys_of({WAYS[way]: line for way, line in lines.items()})])
    return figure


# --- what several of them share ------------------------------------------------------------


def _curves(runs: Runs) -> dict[str, Evolution]:
    return {_named(name, records): mean_evolution(records) for name, records in _some(runs).items()}


def _some(runs: Runs) -> Runs:
    if not runs:
        raise ValueError("no runs to draw: give at least one name with its records")
    return runs


def _named(name: str, records: Sequence[Record]) -> str:
    return name if len(records) == 1 else f"{name} ({len(records)} seeds)"


def _percent_axis(axes: "Axes", label: str) -> None:
    """All of 0 to 100 %, so that figures can be compared."""
    axes.set_ylim(-2, 102)
    axes.set_ylabel(label)


def _share_keys(*, fitted: bool = False) -> list[Any]:
    keys = [
        key("easy samples", color=QUIET, linestyle=EASY),
        key("hard samples", color=QUIET, linestyle=HARD),
    ]
    if fitted:
        keys.append(key("measured", color=QUIET, linewidth=0.7))
        keys.append(key("least-squares fit", color=QUIET, linewidth=1.8))
    return keys


def _keys(lines: Lines, curves: Curves, *, fitted: bool) -> list[list[Any]]:
    shades = period_keys() if any(found.periods for found in curves.values()) else []
    return [keys_of(lines), _share_keys(fitted=fitted), shades]
