"""Figures as files: PNG and SVG that name the runs behind them. No torch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dcvit.drawing import EDGE, GAP, QUIET, WIDTH, style, width_of, wrapped
from dcvit.files import write_atomically
from dcvit.ledger import Record
from dcvit.scale import SCALES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOKE = "smoke: says nothing about the paper"
WARNING = "#a03c00"
MOST_NAMED = 10  # of the runs behind a figure, on the figure itself


def made_by(records: Iterable[Record], *, scale: str | None) -> tuple[str, ...]:
    """What `save` is told of the runs behind a figure, a line for each; `scale` is None for runs of no scale."""
    return tuple(dict.fromkeys(_maker(record, scale) for record in records))


def _maker(record: Record, scale: str | None) -> str:
    commit = (record.environment["commit"] or "unknown")[:7]
    changes = " with changes" if record.environment["dirty"] else ""
    size = "" if scale is None else f", scale {scale}"
    return f"run {record.run_id}, seed {record.seed}, commit {commit}{changes}{size}"


def save(
    figure: "Figure", path_without_suffix: Path, *, made_by: Sequence[str], scale: str | None
) -> tuple[Path, Path]:
    """Writes the figure as PNG and as SVG, each in one move; returns both paths.

    A line at the bottom says what it was made by, cut where there is no more room; the metadata of both files
    say it in full. At scale smoke a second line says that the figure says nothing about the paper. The same
    figure gives the same bytes: there is no date in it. The figure itself is left as it was.

    ValueError for an unknown scale and if `made_by` names nothing; OSError as from writing.
    """
    if scale is not None and scale not in SCALES:
        raise ValueError(f"scale {scale!r}: one of {', '.join(SCALES)}, or None for runs of none of them")
    about = {
        "Title": figure.get_suptitle().replace("\n", " "),
        "Description": "\n".join([*([SMOKE] if scale == "smoke" else []), "made by", *made_by]),
    }
    beside = path_without_suffix.with_name
    png, svg = (beside(f"{path_without_suffix.name}.{kind}") for kind in ("png", "svg"))
    # None takes away what matplotlib would say of itself and of the time
    about_png, about_svg = {**about, "Software": None}, {**about, "Creator": None, "Date": None}
    with style(), signed(figure, made_by=made_by, scale=scale):
        write_atomically(png, lambda path: figure.savefig(path, format="png", metadata=about_png))
        write_atomically(svg, lambda path: figure.savefig(path, format="svg", metadata=about_svg))
    return png, svg


@contextmanager
def signed(figure: "Figure", *, made_by: Sequence[str], scale: str | None) -> Iterator[None]:
    """The figure with the lines at its bottom, while the context lasts. Within `style`."""
    if not made_by:
        raise ValueError("made_by is empty: a figure names the runs that it was drawn from, or the formula")
    height = figure.get_figheight()
    left, bottom = EDGE / WIDTH, EDGE / height
    notes = [figure.text(left, bottom, "\n".join(_signature(made_by)), color=QUIET, va="bottom")]
    if scale == "smoke":
        above = (notes[0].get_window_extent().y1 / figure.dpi + GAP) / height
        notes.append(figure.text(left, above, SMOKE, color=WARNING, weight="bold", va="bottom"))
    try:
        yield
    finally:
        for note in notes:
            note.remove()


def _signature(made_by: Sequence[str]) -> list[str]:
    """At most two lines that name as many as fit, at least one."""
    inches = WIDTH - 2 * EDGE
    for shown in range(min(len(made_by), MOST_NAMED), 0, -1):
        left = len(made_by) - shown
        more = f"; and {left} more, named inside of the file" if left else ""
        text = f"made by {'; '.join(made_by[:shown])}{more}"
        if width_of(text) <= 2 * inches and len(lines := wrapped(text, inches)) <= 2:
            return lines
    return wrapped(text, inches, lines=2)
