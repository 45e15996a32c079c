"""How results are worded: the same digits, signs and sentences on a page, in the report and in a terminal. No torch."""

from collections.abc import Iterable
import re
from statistics import fmean, stdev
from typing import Any

from dcvit.quantities import kind_of
from dcvit.statistics import Estimate, Spread
from dcvit.tables import Cell, Claim, Results, Table
from dcvit.verdicts import ClaimVerdict, Judgement, PartVerdict

SMOKE_WARNING = (
    "**Scale smoke: these numbers prove that the code runs. They say nothing about the paper.** "
    "The networks are toys, the images are {images}, and a run takes seconds."
)
RULE = (
    "The standard deviation s is pooled over the table's cells of the same number, with a weak prior worth four "
    "degrees of freedom. A claim holds if each of its contrasts is above its bound, or within its margin, by "
    "one-sided tests at 5 %, corrected for the number of claims in the table (Holm). It is contradicted if one of "
    "its contrasts is below half the size that the paper gives (below the bound, where it gives none; outside the "
    "margin), at 5 % shared among the claim's contrasts. Both can be true at once: it holds, and is smaller than "
    "half. The bounds shown are one-sided at 95 % each and not corrected. The last column says how many seeds of "
    "every run would decide, should estimate and spread stay as they are."
)
NUMBER_RULE = (
    "A number is reproduced if the 90 % interval of our mean minus the printed value lies within ±delta, below or "
    "above if it lies wholly outside. The interval counts the paper's own run and its rounding as uncertain, too."
)

MARK = "†"
MARKED = (
    f"{MARK} published weights, evaluated here, and gains over them: one evaluation each, no run of ours, so that "
    "there is no spread, and no claim is judged by it. A gain over them also holds what differs between their "
    "authors' training and ours."
)


def said(claim: Claim) -> str:
    """What a claim says: in quotation marks where these are the paper's words."""
    return f"“{claim.sentence}”" if claim.quoted else claim.sentence


def which_epoch(table: Table) -> str:
    """Which epoch the numbers of a table are of, for the beginning of a sentence."""
    if any("/" in cell.metric for cell in table.cells):
        return "Weights of the best epoch on the test images"
    accuracies = all(cell.metric in ("top1", "top5") for cell in table.cells)
    return "Last epoch" if accuracies else "From the evolution of whole runs"


def mean(results: Results, cell: Cell) -> str:
    """The cell's mean over seeds, with the standard deviation where there are several; else why there is none."""
    values, digits = results.values(cell), kind_of(cell.metric).digits
    if cell in results.published:
        value = results.published_value(cell)
        return "not evaluated" if value is None else f"{value:.{digits}f}{MARK}"
    if not values:
        if any(name in results.problems for name in results.ids(cell)):
            return "failed"
        return "none found" if results.found(cell) else "not run"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{round(fmean(values), digits) + 0.0:.{digits}f}{spread}"  # + 0.0: there is no -0.00


def gain(table: Table, results: Results, cell: Cell) -> float | None:
    """Mean of the cell over that of its baseline (or over published weights there); None where one has no number."""
    over = table.baseline_of(cell)
    if over is None or not results.values(cell):
        return None
    level = fmean(results.values(over)) if results.values(over) else results.published_value(over)
    return None if level is None else fmean(results.values(cell)) - level


def gain_shown(table: Table, results: Results, cell: Cell, digits: int = 2) -> str:
    """The same as text, with a mark where it is over published weights."""
    text = signed(gain(table, results, cell), digits)
    return f"{text}{MARK}" if text and table.baseline_of(cell) in results.published else text


def number_verdict(cell: Cell, judgement: Judgement) -> list[str]:
    verdict = judgement.numbers.get(cell)
    if verdict is None:
        return [""] * 7
    if verdict.estimate is None or verdict.spread is None:
        return [verdict.word, "", "", "", "", f"{verdict.delta:g}", ""]
    shown = _measured(verdict.estimate, verdict.spread, kind_of(cell.metric).digits)
    seeds = "" if verdict.seeds_to_decide is None else str(verdict.seeds_to_decide)
    if verdict.word == "undecided" and not seeds:
        seeds = "over 1,000"
    return [f"**{verdict.word}**", *shown, f"{verdict.delta:g}", seeds]


def part_shown(part: PartVerdict, claim: ClaimVerdict) -> list[str]:
    seeds = "/".join(map(str, unique(part.seeds)))
    if part.estimate is None or part.spread is None:
        return ["", "", "", "", seeds, "", "", ""]
    digits = kind_of(part.part.terms[0][1].metric).digits
    decide = "over 1,000" if part.seeds_to_decide is None else str(part.seeds_to_decide)
    return [
        *_measured(part.estimate, part.spread, digits),
        seeds,
        f"{part.p:.2g}",
        f"{claim.p_holm:.2g}",
        decide,
    ]


def _measured(estimate: Estimate, spread: Spread, digits: int) -> list[str]:
    low, high = estimate.lower(0.95), estimate.upper(0.95)
    return [
        signed(estimate.value, digits),
        f"{low:+.{digits}f} to {high:+.{digits}f}",
        f"{spread.sd:.{max(digits, 2)}f}",
        f"{estimate.df:g}",
    ]


def signed(value: float | None, digits: int = 2) -> str:
    """A difference; "" for none.

    >>> signed(0.6, 1), signed(-0.25), signed(None)
    ('+0.6', '-0.25', '')
    """
    return "" if value is None else f"{value:+.{digits}f}"


def count(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(600), duration(86400)
    ('42 s', '10 min', '24.0 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def short(value: Any) -> str:
    """A value of a recipe.

    >>> short(3e-4 + 1e-20), short((2, 6)), short(None)
    ('0.0003', '(2, 6)', 'None')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)


def unique(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def as_text(value: Any) -> Any:
    """Strings of records, also inside of lists and dicts, as words of a markdown page: one line, no markup, no HTML.

    A vertical bar is left to whoever makes a table of it.

    >>> as_text("<b>\\n*1* [x](y)")
    '&lt;b&gt; \\\\*1\\\\* \\\\[x\\\\](y)'
    """
    if isinstance(value, str):
        shown = "".join(sign if sign.isprintable() else " " for sign in value)
        for sign, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            shown = shown.replace(sign, instead)
        return re.sub(r"([\\`*\[\]])", r"\\\1", " ".join(shown.split()))
    if isinstance(value, list):
        return [as_text(entry) for entry in value]
    if isinstance(value, dict):
        return {name: as_text(entry) for name, entry in value.items()}
    return value
