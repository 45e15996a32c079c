"""What the report knows of each cell, and shows of it on a click: runs, recipes, where they were made. No torch.

What goes to the page is data for JSON. Nothing is said twice there: cells name their recipe and runs,
and runs the place where they were made.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

from dcvit.ledger import Record
from dcvit.quantities import in_words, kind_of, value
from dcvit.recipe import Recipe, as_data, differences
from dcvit.tables import Cell, Results, Table
from dcvit.verdicts import Judgement, judge
from dcvit.wording import duration, gain, mean, number_verdict, short, signed


@dataclass(frozen=True, kw_only=True)
class Once(Results):
    """Results that read every number once: a page asks for them many times, and some take a fit."""

    names: dict[Recipe, list[str]] = field(default_factory=dict, compare=False)
    numbers: dict[tuple[Recipe, str, str], dict[str, float | None]] = field(
        default_factory=dict, compare=False
    )

    def ids(self, cell: Cell) -> list[str]:
        """As of `Results`."""
        twin = self.twins[cell.recipe]
        if twin not in self.names:
            self.names[twin] = super().ids(cell)
        return self.names[twin]

    def by_run(self, cell: Cell, which: str = "last") -> dict[str, float | None]:
        """The cell's number by run id; None where a run has no such number."""
        key = (self.twins[cell.recipe], cell.metric, which)
        if key not in self.numbers:
            self.numbers[key] = {
                record.run_id: value(record, self.patch_probes.get(record.run_id), cell.metric, which=which)
                for record in self.found(cell)
            }
        return self.numbers[key]

    def values(self, cell: Cell, which: str = "last") -> list[float]:
        """As of `Results`."""
        return [number for number in self.by_run(cell, which).values() if number is not None]


@dataclass(frozen=True)
class Shown:
    """A table with all that there is to show of it."""

    id: str
    table: Table
    results: Once
    judgement: Judgement
    keys: Mapping[Cell, str]  # what the page calls a cell

    def ours(self, cell: Cell) -> str:
        """The mean, with the standard deviation where there are several seeds, or why there is none."""
        return mean(self.results, cell)

    def paper(self, cell: Cell) -> str:
        """As the paper prints it; "" where it prints nothing."""
        return "" if cell.paper is None else f"{cell.paper:.{cell.digits}f}"

    def gain(self, cell: Cell) -> str:
        """Ours over ours; "" where either is missing, or the cell is a baseline."""
        return signed(gain(self.table, self.results, cell), kind_of(cell.metric).digits)

    def printed_gain(self, cell: Cell) -> str:
        """The paper's number over the paper's; "" where either is not printed."""
        over = self.table.baseline_of(cell)
        if over is None or cell.paper is None or over.paper is None:
            return ""
        return signed(cell.paper - over.paper, cell.digits)


def look_at(id: str, table: Table, results: Results) -> Shown:
    """Judges a table."""
    once = Once(**{entry.name: getattr(results, entry.name) for entry in fields(results) if entry.init})
    keys = {cell: f"{id}-{number}" for number, cell in enumerate(table.cells)}
    return Shown(id=id, table=table, results=once, judgement=judge(table, once), keys=keys)


# --- what to call a recipe -----------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """What to call a recipe: the first place that shows it."""

    table: str
    name: str


def calls_of(tables: Iterable[tuple[Table, Results]]) -> dict[Recipe, Call]:
    """The recipes that were trained and what to call them.

    Tables without a number name their rows alone, since their columns are kinds of numbers, and come first; those
    of the patch probe come last, since their rows say what was erased.
    """
    calls: dict[Recipe, Call] = {}
    for table, results in sorted(tables, key=lambda pair: (_probed(pair[0]), pair[0].number is not None)):
        for cell in table.cells:
            name = cell.row if table.number is None else f"{cell.row}, {cell.column}"
            calls.setdefault(results.twins[cell.recipe], Call(short_name(table), name))
    return calls


def short_name(table: Table) -> str:
    """What a link calls a table."""
    return table.title.split(" (")[0] if table.number is None else f"Table {table.number}"


def _probed(table: Table) -> bool:
    return any("/" in cell.metric for cell in table.cells)


# --- as data -------------------------------------------------------------------------------


def behind(tables: Sequence[Shown], calls: Mapping[Recipe, Call]) -> dict[str, Any]:
    """All that a study's cells show on a click. `calls` names the recipes that were trained."""
    recipes = {recipe: number for number, recipe in enumerate(calls)}
    records = {record.run_id: record for shown in tables for record in shown.results.records.values()}
    places = {name: _place(record) for name, record in records.items()}
    distinct = list(dict.fromkeys(places.values()))
    number_of = {place: number for number, place in enumerate(distinct)}
    return {
        "cells": {
            shown.keys[cell]: _cell(shown, cell, recipes) for shown in tables for cell in shown.table.cells
        },
        "recipes": [
            {"name": f"{call.table}: {call.name}", "fields": list(_fields(recipe, calls))}
            for recipe, call in calls.items()
        ],
        "runs": {name: _run(record, number_of[places[name]]) for name, record in records.items()},
        "places": distinct,
    }


def _cell(shown: Shown, cell: Cell, recipes: Mapping[Recipe, int]) -> dict[str, Any]:
    results, over = shown.results, shown.table.baseline_of(cell)
    twins, digits, numbers = results.twins, kind_of(cell.metric).digits, results.by_run(cell)
    number = in_words(cell.metric).split(", ")[0]
    return {
        "title": f"{cell.row}, {cell.column}" + ("" if number in cell.column else f": {number}"),
        "place": " · ".join(filter(None, (shown.table.heading, cell.group))),
        "facts": [[name, text] for name, text in _facts(shown, cell) if text],
        "recipe": recipes[twins[cell.recipe]],
        "baseline": None if over is None else f"{over.row}, {over.column}",
        "no_baseline": "It is the baseline." if shown.table.baseline else "This table takes no gains.",
        "changes": [] if over is None else _changes(twins[over.recipe], twins[cell.recipe]),
        "runs": [
            [name, "none found" if found is None else f"{found:.{digits}f}"]
            for name, found in numbers.items()
        ],
        "missing": [
            [f"seed {seed}", name, results.problems.get(name, "not run")]
            for seed, name in zip(results.seeds, results.ids(cell), strict=True)
            if name not in numbers
        ],
    }


def _facts(shown: Shown, cell: Cell) -> Iterator[tuple[str, str]]:
    """What is known of a cell: name, text; without text where there is nothing."""
    results, over, kind = shown.results, shown.table.baseline_of(cell), kind_of(cell.metric)
    known = results.values(cell)
    yield "ours", f"{shown.ours(cell)}{f' {kind.unit}' if known and kind.unit else ''}"
    yield "paper", shown.paper(cell)
    if over is not None:
        yield f"gain here over {over.row}, {over.column}", shown.gain(cell)
        yield "gain in the paper", shown.printed_gain(cell)
    if cell.metric in ("top1", "top5") and known:
        best = fmean(results.values(cell, "best"))
        yield "best epoch on the test images (shown, not used)", f"{best:.{kind.digits}f}"
    yield "seeds", f"{len(known)} of {len(results.seeds)}"
    if (verdict := shown.judgement.numbers.get(cell)) is not None and verdict.estimate is not None:
        yield "verdict", verdict.word
        names = ("ours - paper", "90 % interval", "s", "df", "delta", "seeds to decide")
        yield from zip(names, number_verdict(cell, shown.judgement)[1:], strict=True)


def _changes(old: Recipe, new: Recipe) -> list[list[str]]:
    return [[name, short(before), short(after)] for name, (before, after) in differences(old, new).items()]


def _fields(recipe: Recipe, calls: Mapping[Recipe, Call]) -> Iterator[list[str]]:
    """Every field of a recipe by its dotted name; the run it starts from by what it is called."""
    for name, text in _flat("", as_data(recipe)):
        if name == "pretrained" or not name.startswith("pretrained"):
            yield [name, text]
    if recipe.pretrained is not None:
        call = calls.get(recipe.pretrained)
        yield ["pretrained", f"{call.table}: {call.name}, same seed" if call else "a run that no cell shows"]


def _flat(prefix: str, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, entry in data.items():
        if isinstance(entry, dict):
            yield f"{prefix}{name}", str(entry["type"])
            yield from _flat(f"{prefix}{name}.", entry)
        elif name != "type":
            yield f"{prefix}{name}", short(entry)


def _run(record: Record, place: int) -> dict[str, Any]:
    return {
        "seed": record.seed,
        "top1": f"{record.last['top1']:.2f}",
        "best": f"{record.best['top1']:.2f} (epoch {record.best['epoch']})",
        "started": record.started,
        "took": duration(record.seconds),
        "samples": f"{record.samples_seen:,}",
        "place": place,
        "weights": [[name, digest] for name, digest in record.weights.items()],
    }


def _place(record: Record) -> tuple[tuple[str, str], ...]:
    """Where, with what and from which images a run was made: name, text."""
    where, data = dict(record.environment), record.data
    versions = where.pop("versions")
    changes = " with changes" if where.pop("dirty") else ""
    counts = [f"{data[key]:,} {what}" for key, what in _COUNTS if key in data]
    facts = {
        "device": f"{where.pop('device_name')} ({where.pop('device')})",
        "precision": where.pop("precision"),
        "commit": f"{where.pop('commit') or 'unknown'}{changes}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "images": ", ".join([data["name"], *counts, f"fingerprint {data['fingerprint']}"]),
        "parameters": f"{record.parameters:,}",
        **where,  # what else the environment says: threads, Python, the hash of the changes
    }
    return tuple((name, str(text)) for name, text in facts.items() if text is not None)


_COUNTS = (("classes", "classes"), ("train_images", "training"), ("test_images", "test"))
