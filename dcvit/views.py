"""What the report's templates show: a study, its tables, their cells and claims, as words and lines. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dcvit.behind import Call, Shown, short_name
from dcvit.charts import Axis, axes, curve, schedules, unit, whisker
from dcvit.facts import made_with, scale_differences
from dcvit.ledger import Record
from dcvit.quantities import in_words, kind_of
from dcvit.recipe import Recipe
from dcvit.tables import Cell, Results
from dcvit.verdicts import ClaimVerdict, PartVerdict, wanted
from dcvit.wording import (
    SMOKE_WARNING,
    count,
    duration,
    number_verdict,
    part_shown,
    said,
    short,
    unique,
    which_epoch,
)

LOOKS = {  # word -> colour (a class of report.css) and the sign before it: never colour alone
    "reproduced": ("good", "✓"),
    "holds": ("good", "✓"),
    "holds, smaller than half": ("part", "◐"),
    "above": ("part", "▲"),
    "below": ("bad", "▼"),
    "contradicted": ("bad", "✗"),
    "undecided": ("open", "?"),
    "not run": ("none", "–"),
    "not comparable": ("none", "–"),
    "smoke": ("none", "~"),
}


def study_of(id: str, tables: Sequence[Shown]) -> dict[str, Any]:
    """One folder of runs: what was run where, and its tables."""
    results = [shown.results for shown in tables]
    records = {name: record for one in results for name, record in one.records.items()}
    first = results[0]
    return {
        "id": id,
        "warning": SMOKE_WARNING.format(images=first.images) if first.scale == "smoke" else "",
        "facts": [("scale", first.scale), ("images", first.images), *_made(list(records.values()), first)],
        "problems": {name: why for one in results for name, why in one.problems.items()},
        "tables": [_table(shown) for shown in tables],
    }


def _made(records: Sequence[Record], results: Results) -> Iterator[tuple[str, str]]:
    if not records:
        yield "runs", "none has finished"
        return
    facts = made_with(records)
    yield "runs", f"{facts['runs']:,} finished, of {count(len(results.seeds), 'seed')} each"
    yield "training", f"{duration(facts['seconds'])} in all, begun {facts['started']}"
    yield "device", f"{', '.join(facts['device'])}; {', '.join(facts['precision'])}"
    yield "augmentation", ", ".join(facts["augmentation"])
    yield "versions", f"torch {', '.join(facts['torch'])}; timm {', '.join(facts['timm'])}"
    yield "commit", ", ".join(facts["commit"])
    yield "fingerprint of the images", ", ".join(facts["data_fingerprint"])


def _table(shown: Shown) -> dict[str, Any]:
    table, results = shown.table, shown.results
    units = unique(kind_of(cell.metric).unit for cell in table.cells)
    return {
        "id": shown.id,
        "short": short_name(table),
        "heading": table.heading,
        "epoch": which_epoch(table),
        "printed": any(cell.paper is not None for cell in table.cells),
        "gains": bool(table.baseline),
        "unit": units[0] if len(units) == 1 else "",
        "groups": [
            _group(shown, name, [cell for cell in table.cells if cell.group == name])
            for name in unique(cell.group for cell in table.cells)
        ],
        "claims": [_claim(shown, found) for found in shown.judgement.claims],
        "numbers": [_number(shown, cell) for cell in table.cells if cell.paper is not None]
        if any(verdict.estimate is not None for verdict in shown.judgement.numbers.values())
        else [],
        "scale": results.scale,
        "changes": [
            (
                name,
                short(old),
                short(new),
                "all" if rows == unique(cell.row for cell in table.cells) else ", ".join(rows),
            )
            for name, old, new, rows in scale_differences(table, results)
        ],
        "chosen": table.chosen_here,
    }


def _sort(cell: Cell) -> str:
    """What kinds of numbers stand side by side in a column: top-1 and top-5."""
    return cell.metric.rsplit("/", 1)[-1]


def _group(shown: Shown, name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """A part of the table in the paper's shape: a heading for each column, and below it for each kind of number."""
    at = {(cell.row, cell.column, _sort(cell)): cell for cell in reversed(cells)}
    places = unique((cell.column, _sort(cell)) for cell in cells)
    columns = unique(column for column, _ in places)
    places.sort(key=lambda place: columns.index(place[0]))
    heads = {place: next(cell for cell in cells if (cell.column, _sort(cell)) == place) for place in places}
    rows = unique(cell.row for cell in cells)
    facts = unique(fact for row in rows for fact in shown.table.row_facts.get(row, {}))
    units = len({kind_of(cell.metric).unit for cell in shown.table.cells}) > 1
    return {
        "name": name,
        "facts": [*facts, *(["parameters here", "resolution here"] if facts else [])],
        "columns": [(column, sum(place[0] == column for place in places)) for column in columns],
        "kinds": [in_words(heads[place].metric) for place in places] if len(places) > len(columns) else [],
        "units": [kind_of(heads[place].metric).unit for place in places] if units else [],
        "rows": [
            {
                "name": row,
                "facts": _row_facts(shown, row, facts, [cell for cell in cells if cell.row == row]),
                "cells": [_cell(shown, at.get((row, *place))) for place in places],
            }
            for row in rows
        ],
    }


def _row_facts(shown: Shown, row: str, facts: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """What the paper says of a row's network, then its parameters, where a record counted them, and resolution here."""
    if not facts:
        return []
    records = shown.results.found(cells[0])
    here = f"{records[0].parameters / 1e6:.3g}M" if records else ""
    resolution = f"{shown.results.twins[cells[0].recipe].resolution} px"
    return [*(shown.table.row_facts.get(row, {}).get(fact, "") for fact in facts), here, resolution]


def _cell(shown: Shown, cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    known = bool(shown.results.values(cell))
    verdict = shown.judgement.numbers.get(cell)
    word = verdict.word if verdict is not None and known else ""
    return {
        "key": shown.keys[cell],
        "ours": shown.ours(cell),
        "known": known,
        "paper": shown.paper(cell),
        "gain": shown.gain(cell),
        # at scale small no number is compared, which is said once and not in every cell
        "word": "" if word == "not comparable" else word,
    }


def _claim(shown: Shown, found: ClaimVerdict) -> dict[str, Any]:
    return {
        "id": f"{shown.id}-{found.claim.id}",
        "name": found.claim.id,
        "sentence": said(found.claim),
        "reading": found.claim.reading,
        "word": found.word,
        "note": found.note,
        "units": [_contrasts(found, name, axis) for name, axis in axes(found.parts).items()],
    }


def _contrasts(claim: ClaimVerdict, name: str, axis: Axis) -> dict[str, Any]:
    """A claim's parts of one unit, along one axis."""
    parts = [part for part in claim.parts if unit(part) == name]
    return {
        "unit": name,
        "measured": any(part.estimate is not None for part in parts),
        "ticks": [(axis.at(tick), f"{tick:g}") for tick in axis.ticks()],
        "parts": [
            {
                "name": part.part.name,
                "wanted": wanted(part.part),
                "shown": part_shown(part, claim),
                "drawn": whisker(part, axis),
                "title": _in_words(part, claim),
            }
            for part in parts
        ],
    }


def _number(shown: Shown, cell: Cell) -> dict[str, Any]:
    word, *measured = number_verdict(cell, shown.judgement)
    return {
        "place": (cell.row, cell.column, in_words(cell.metric)),
        "paper": shown.paper(cell),
        "ours": shown.ours(cell),
        "word": word.strip("*"),
        "measured": measured,
    }


def _in_words(part: PartVerdict, claim: ClaimVerdict) -> str:
    """What the drawing of a contrast says, for those who do not see it, and on hover."""
    estimate, bounds, *_ = part_shown(part, claim)
    measured = f"estimate {estimate}, 95 % bounds {bounds}" if estimate else "nothing measured"
    return f"{part.part.name}: {measured}; wanted: {wanted(part.part)}"


def overview(names: Sequence[str], tables: Sequence[Sequence[Shown]]) -> list[dict[str, Any]]:
    """Every claim once, with each study's word for it and the place that says why.

    Smoke, where nothing is judged, is left out beside other studies.
    """
    words: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    smoke_only = all(shown.results.scale == "smoke" for found in tables for shown in found)
    for name, found in zip(names, tables, strict=True):
        for shown in found:
            for verdict in shown.judgement.claims:
                here = words.setdefault((short_name(shown.table), said(verdict.claim)), [])
                if verdict.word != "smoke" or smoke_only:
                    here.append((verdict.word, f"{shown.id}-{verdict.claim.id}", name))
    return [{"table": table, "sentence": said, "words": here} for (table, said), here in words.items()]


def counts(tables: Sequence[Shown]) -> list[tuple[str, int]]:
    """How many claims have which word, in the order of `LOOKS`."""
    words = [verdict.word for shown in tables for verdict in shown.judgement.claims]
    return [(word, words.count(word)) for word in LOOKS if word in words]


def charts_of(tables: Sequence[Shown], calls: Mapping[Recipe, Call]) -> dict[str, Any]:
    """Curves of every recipe that has run, and alpha over training."""
    twins = {
        shown.results.twins[cell.recipe]: (shown, cell) for shown in tables for cell in shown.table.cells
    }
    records = {recipe: shown.results.found(cell) for recipe, (shown, cell) in twins.items()}
    curves = [(call, curve(records[recipe])) for recipe, call in calls.items()]
    return {
        "curves": [
            {"label": call.name, "table": call.table, **found} for call, found in curves if found is not None
        ],
        "schedules": schedules({recipe: call.name for recipe, call in calls.items()}, records),
    }
