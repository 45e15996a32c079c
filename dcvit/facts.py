"""A table's results as data: what `OUT/tableN.json` and the report hold. No torch.

Nothing is here that no record or declaration holds.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dcvit.ledger import Record
from dcvit.published import WEIGHTS_OF
from dcvit.quantities import kind_of
from dcvit.recipe import differences
from dcvit.statistics import Estimate, Spread
from dcvit.tables import Cell, Results, Table
from dcvit.verdicts import ClaimVerdict, Judgement, NumberVerdict, PartVerdict, judge, wanted


def as_json(table: Table, results: Results) -> dict[str, Any]:
    """The table's facts, JSON-ready. Numbers are of the last epoch; `best` beside them."""
    judgement = judge(table, results)
    return {
        "table": table.number,
        "name": table.name,
        "title": table.title,
        "scale": results.scale,
        "images": results.images,
        "seeds": list(results.seeds),
        "cells": [_cell(cell, results, judgement) for cell in table.cells],
        "claims": [_claim(found) for found in judgement.claims],
        "baseline": "published" if results.published else "own",
        "published_weights": published_weights(results),
        "problems": dict(results.problems),
        "made_with": made_with(list(results.records.values())),
        "by_augmentation": by_augmentation(table, results),
        "differences_from_paper_scale": [
            {"field": name, "paper": str(old), "here": str(new), "rows": rows}
            for name, old, new, rows in scale_differences(table, results)
        ],
        "chosen_here": list(table.chosen_here),
    }


def _cell(cell: Cell, results: Results, judgement: Judgement) -> dict[str, Any]:
    verdict = judgement.numbers.get(cell)
    return {
        "row": cell.row,
        "column": cell.column,
        "group": cell.group,
        "metric": cell.metric,
        "unit": kind_of(cell.metric).unit,
        "paper": cell.paper,
        "values": results.values(cell),
        "runs": [
            name
            for name in results.ids(cell)
            if name not in results.problems and cell not in results.published
        ],
        "best": results.values(cell, "best") if cell.metric in ("top1", "top5") else [],
        "verdict": None if verdict is None else _number(verdict),
        **({"published": results.published_value(cell)} if cell in results.published else {}),
    }


def _number(verdict: NumberVerdict) -> dict[str, Any]:
    return {
        "word": verdict.word,
        "delta": verdict.delta,
        "seeds": verdict.seeds,
        **_measured(verdict.estimate, verdict.spread),
        "seeds_to_decide": verdict.seeds_to_decide,
    }


def _claim(verdict: ClaimVerdict) -> dict[str, Any]:
    return {
        "id": verdict.claim.id,
        "sentence": verdict.claim.sentence,
        "reading": verdict.claim.reading,
        "word": verdict.word,
        "p": verdict.p,
        "p_holm": verdict.p_holm,
        "note": verdict.note,
        "parts": [_part(part) for part in verdict.parts],
    }


def _part(verdict: PartVerdict) -> dict[str, Any]:
    return {
        "name": verdict.part.name,
        "contrast": [[c, cell.row, cell.column, cell.metric] for c, cell in verdict.part.terms],
        "wanted": wanted(verdict.part),
        "question": {"type": type(verdict.part.question).__name__, **asdict(verdict.part.question)},
        "seeds": list(verdict.seeds),
        **_measured(verdict.estimate, verdict.spread),
        "p": verdict.p,
        "p_contrary": verdict.p_contrary,
        "seeds_to_decide": verdict.seeds_to_decide,
    }


def _measured(estimate: Estimate | None, spread: Spread | None) -> dict[str, Any]:
    """Estimate, the two one-sided 95 % bounds, spread and degrees of freedom; nothing where there is none."""
    if estimate is None or spread is None:
        return {"estimate": None, "low": None, "high": None, "s": None, "df": None}
    return {
        "estimate": estimate.value,
        "low": float(estimate.lower(0.95)),
        "high": float(estimate.upper(0.95)),
        "s": spread.sd,
        "df": estimate.df,
    }


def made_with(records: Sequence[Record]) -> dict[str, Any]:
    """Where and with what records were made; lists, since machines and commits may differ."""
    environments = [record.environment for record in records]
    return {
        "device": sorted({f"{env['device_name']} ({env['device']})" for env in environments}),
        "precision": sorted({env["precision"] for env in environments}),
        "augmentation": sorted(set(map(augmentation_of, records))),
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


def augmentation_of(record: Record) -> str:
    """Who augmented a run's images, "pil" or "device"; records that are older than the choice were made by pil.

    "device from a cache" where crops were taken from images that had been resized before, which are other pixels.
    """
    resized = " from a cache" if record.environment.get("cache") else ""
    return f"{record.environment.get('augmentation', 'pil')}{resized}"


def by_augmentation(table: Table, results: Results) -> dict[str, list[str]]:
    """Where the runs of a table were augmented in different ways: by whom -> "row, column". Empty where all are alike.

    A difference between two such cells is also one of the two ways.
    """
    cells: dict[str, list[str]] = {}
    for cell in table.cells:
        for record in results.found(cell):
            names = cells.setdefault(augmentation_of(record), [])
            name = f"{cell.row}, {cell.column}"
            if name not in names:
                names.append(name)
    return dict(sorted(cells.items())) if len(cells) > 1 else {}


def published_weights(results: Results) -> list[dict[str, Any]]:
    """Of every row that published weights fill, what they got and what was evaluated; None where nothing was yet."""
    found = {}
    for cell, score in results.published.items():
        weights = WEIGHTS_OF[cell.recipe]
        environment = score.environment if score else {}
        commit = environment.get("commit") or "unknown"
        found[cell.row] = {
            "row": cell.row,
            "name": weights.name,
            "top1": score and score.over_all.top1,
            "top5": score and score.over_all.top5,
            "printed": list(weights.official),
            "weights": score and score.weights[:12],
            "origin": score and score.origin,
            "protocol": score and str(score.protocol),
            "images": score and score.data["test_images"],
            "data_fingerprint": score and score.data["fingerprint"][:12],
            "precision": environment.get("precision"),
            "device": environment.get("device_name"),
            "timm": environment.get("versions", {}).get("timm"),
            "commit": f"{commit}{' with changes' if environment.get('dirty') else ''}" if score else None,
        }
    return list(found.values())


def scale_differences(table: Table, results: Results) -> list[tuple[str, Any, Any, list[str]]]:
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
