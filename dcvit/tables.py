"""A table of the paper as a value, and its page: the paper's numbers beside ours. No torch.

Records in, markdown and JSON out: nothing here trains, and nothing is written that no record
or declaration holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from dcvit.ledger import Record
from dcvit.recipe import Recipe, differences, run_id

SMOKE_WARNING = (
    "**Scale smoke: these numbers prove that the code runs. They say nothing about the paper.** "
    "The networks are toys, the images are {images}, and a run takes seconds."
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One printed number: which run makes it, and what the paper says."""

    row: str
    column: str
    metric: str  # top1 or top5
    recipe: Recipe  # at paper scale
    paper: float  # percent


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the paper."""

    number: int
    title: str
    script: str = ""  # the module of reproductions/ that makes it
    cells: tuple[Cell, ...]
    baseline: str  # the column (or the row, if no column has this name) that gains are over
    row_facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # row -> heading -> text
    chosen_here: tuple[str, ...]  # choices that the paper leaves open

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The cell that `cell` is a gain over; None for a baseline itself."""
        columns = {other.column for other in self.cells}
        place = (cell.row, self.baseline) if self.baseline in columns else (self.baseline, cell.column)
        if place == (cell.row, cell.column):
            return None
        return next(c for c in self.cells if (c.row, c.column, c.metric) == (*place, cell.metric))


@dataclass(frozen=True, kw_only=True)
class Results:
    """What there is for a table at one scale."""

    scale: str
    images: str  # in words
    seeds: tuple[int, ...]
    twins: Mapping[Recipe, Recipe]  # recipe at paper scale -> the one that was trained
    records: Mapping[str, Record]  # run id -> finished run
    problems: Mapping[str, str]  # run id -> why there is no record

    def ids(self, cell: Cell) -> list[str]:
        """The runs behind a cell, one a seed."""
        return [run_id(self.twins[cell.recipe], seed) for seed in self.seeds]

    def values(self, cell: Cell, which: str = "last") -> list[float]:
        """The cell's numbers, one for each seed that has a record; `which` is last or best."""
        found = [self.records[name] for name in self.ids(cell) if name in self.records]
        return [getattr(record, which)[cell.metric] for record in found]


# --- as data -------------------------------------------------------------------------------


def as_json(table: Table, results: Results) -> dict[str, Any]:
    """The table's facts, JSON-ready. Accuracies in percent, of the last epoch; `best` beside them."""
    return {
        "table": table.number,
        "title": table.title,
        "scale": results.scale,
        "images": results.images,
        "seeds": list(results.seeds),
        "cells": [
            {
                "row": cell.row,
                "column": cell.column,
                "metric": cell.metric,
                "paper": cell.paper,
                "values": results.values(cell),
                "runs": [name for name in results.ids(cell) if name not in results.problems],
                "best": results.values(cell, "best"),
            }
            for cell in table.cells
        ],
        "problems": dict(results.problems),
        "made_with": _facts(results),
        "differences_from_paper_scale": [
            {"field": name, "paper": str(old), "here": str(new), "rows": rows}
            for name, old, new, rows in _scale_differences(table, results)
        ],
        "chosen_here": list(table.chosen_here),
    }


def _facts(results: Results) -> dict[str, Any]:
    """Where and with what the records were made; lists, since machines and commits may differ."""
    records = list(results.records.values())
    environments = [record.environment for record in records]
    return {
        "device": sorted({f"{env['device_name']} ({env['device']})" for env in environments}),
        "precision": sorted({env["precision"] for env in environments}),
        "commit": sorted(
            {f"{env['commit'] or 'unknown'}{' with changes' if env['dirty'] else ''}" for env in environments}
        ),
        "torch": sorted({str(env["versions"]["torch"]) for env in environments}),
        "timm": sorted({str(env["versions"]["timm"]) for env in environments}),
        "data_fingerprint": sorted({record.data["fingerprint"][:12] for record in records}),
        "runs": len(records),
        "seconds": round(sum(record.seconds for record in records), 1),
        "started": min((record.started for record in records), default=None),
    }


def _scale_differences(table: Table, results: Results) -> list[tuple[str, Any, Any, list[str]]]:
    """What was changed from paper scale: (field, old, new, the rows it concerns)."""
    rows: dict[tuple[str, Any, Any], list[str]] = {}
    for cell in table.cells:
        for name, (old, new) in differences(cell.recipe, results.twins[cell.recipe]).items():
            if not name.startswith("pretrained"):  # the run it starts from has rows of its own
                here = rows.setdefault((name, old, new), [])
                if cell.row not in here:
                    here.append(cell.row)
    order = sorted(rows, key=lambda key: key[0])
    return [(*key, rows[key]) for key in order]


# --- as a page -----------------------------------------------------------------------------


def render(table: Table, results: Results) -> str:
    """The table as a GitHub markdown page."""
    sections = [
        f"# Table {table.number}. {table.title}",
        SMOKE_WARNING.format(images=results.images) if results.scale == "smoke" else "",
        _facts_line(results),
        "## At a glance\n\nTop-1 in percent, last epoch, ours (the paper's number in brackets).",
        _glance(table, results),
        "## Every cell\n\nIn percent; last epoch, mean over seeds, ± standard deviation where there are two or "
        "more. A gain is over the baseline beside it: the paper's over the paper's, ours over ours. "
        "Best is the best epoch on the test images, shown and not used.",
        _every_cell(table, results),
        _problems(results),
        _scale_section(table, results),
        "## Not in the paper, chosen here\n\n" + "\n".join(f"- {line}" for line in table.chosen_here),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _facts_line(results: Results) -> str:
    facts = _facts(results)
    if not results.records:
        return f"Scale {results.scale}, {results.images}. No run has finished."
    return (
        f"Scale {results.scale}; images: {results.images} (fingerprint {', '.join(facts['data_fingerprint'])}); "
        f"{_count(facts['runs'], 'run')} of {_count(len(results.seeds), 'seed')} each, {duration(facts['seconds'])} "
        f"of training in all, begun {facts['started']}; device: {', '.join(facts['device'])}, "
        f"{', '.join(facts['precision'])}; torch {', '.join(facts['torch'])}, timm {', '.join(facts['timm'])}; "
        f"commit {', '.join(facts['commit'])}."
    )


def _glance(table: Table, results: Results) -> str:
    cells = [cell for cell in table.cells if cell.metric == table.cells[0].metric]
    rows, columns = _unique(cell.row for cell in cells), _unique(cell.column for cell in cells)
    facts = _unique(name for row in rows for name in table.row_facts.get(row, {}))
    at = {(cell.row, cell.column): cell for cell in cells}
    lines = [
        [
            row,
            *(table.row_facts.get(row, {}).get(name, "") for name in facts),
            *_here(results, at[row, columns[0]]),
            *(f"{_mean(results, at[row, column])} ({at[row, column].paper:.1f})" for column in columns),
            *([_signed(_gain(table, results, at[row, columns[-1]]))] if len(columns) == 2 else []),
        ]
        for row in rows
    ]
    head = [
        "",
        *facts,
        "parameters here",
        "resolution here",
        *columns,
        *(["gain here"] if len(columns) == 2 else []),
    ]
    return _markdown(lines, head)


def _here(results: Results, cell: Cell) -> tuple[str, str]:
    """Parameters, where a record has counted them, and resolution of the network that was trained."""
    found = [results.records[name].parameters for name in results.ids(cell) if name in results.records]
    twin = results.twins[cell.recipe]
    return (f"{found[0] / 1e6:.3g}M" if found else ""), f"{twin.resolution} px"


def _every_cell(table: Table, results: Results) -> str:
    lines = []
    for cell in table.cells:
        over = table.baseline_of(cell)
        values = results.values(cell)
        lines.append(
            [
                cell.row,
                cell.column,
                cell.metric.replace("top", "top-"),
                f"{cell.paper:.1f}",
                _mean(results, cell),
                _signed(cell.paper - over.paper, 1) if over else "",
                _signed(_gain(table, results, cell)) if over else "",
                f"{fmean(results.values(cell, 'best')):.2f}" if values else "",
                f"{len(values)} of {len(results.seeds)}",
            ]
        )
    head = ["model", "training", "metric", "paper", "ours", "gain in the paper", "gain here", "best", "seeds"]
    return _markdown(lines, head)


def _mean(results: Results, cell: Cell) -> str:
    values = results.values(cell)
    if not values:
        failed = [results.problems[name] for name in results.ids(cell) if name in results.problems]
        return "failed" if failed else "not run"
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def _gain(table: Table, results: Results, cell: Cell) -> float | None:
    """Mean of the cell over the mean of its baseline; None where either has no number."""
    over = table.baseline_of(cell)
    if over is None or not results.values(cell) or not results.values(over):
        return None
    return fmean(results.values(cell)) - fmean(results.values(over))


def _problems(results: Results) -> str:
    if not results.problems:
        return ""
    return "## Runs that failed\n\n" + "\n".join(
        f"- `{name}`: {why}" for name, why in results.problems.items()
    )


def _scale_section(table: Table, results: Results) -> str:
    changed = _scale_differences(table, results)
    if not changed:
        return ""
    all_rows = _unique(cell.row for cell in table.cells)
    lines = [
        [f"`{name}`", _short(old), _short(new), "all" if rows == all_rows else ", ".join(rows)]
        for name, old, new, rows in changed
    ]
    return f"## What scale {results.scale} changes\n\n" + _markdown(
        lines, ["field of the recipe", "paper", "here", "rows"]
    )


def _markdown(lines: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    # without disable_numparse tabulate turns 72.20 into 72.2
    return tabulate(escaped, head, tablefmt="github", disable_numparse=True)


def _short(value: Any) -> str:
    """
    >>> _short(3e-4 + 1e-20), _short((2, 6)), _short(None)
    ('0.0003', '(2, 6)', 'None')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _signed(value: float | None, digits: int = 2) -> str:
    """
    >>> _signed(0.6, 1), _signed(-0.25), _signed(None)
    ('+0.6', '-0.25', '')
    """
    return "" if value is None else f"{value:+.{digits}f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(600), duration(86400)
    ('42 s', '10 min', '24.0 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
