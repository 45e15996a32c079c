"""What the runs say of a table's numbers and claims: one word each, with all that it rests on. No torch.

The rule is in `dcvit.statistics`. Numbers are compared at scale paper only, where the images and
networks are the paper's; claims are contrasts of our own cells and are judged at small, too. At
smoke nothing is: toys say nothing about the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dcvit.quantities import Kind, in_words, kind_of
from dcvit.statistics import (
    ClaimWord,
    Estimate,
    Exceeds,
    NumberWord,
    Spread,
    StaysWithin,
    claim_word,
    contrast,
    difference_from_print,
    holm,
    number_word,
    pooled_spread,
    seeds_for_claim,
    seeds_for_number,
)
from dcvit.tables import Cell, Claim, Part, Results, Table

NoWord = Literal["not run", "smoke", "not comparable"]
CLAIM_SCALES = ("small", "paper")


@dataclass(frozen=True, kw_only=True)
class NumberVerdict:
    """A cell against the printed value."""

    word: NumberWord | NoWord
    delta: float
    seeds: int = 0
    estimate: Estimate | None = None  # our mean minus the printed value
    spread: Spread | None = None
    seeds_to_decide: int | None = None  # should mean and spread stay; None: decided, or too many


@dataclass(frozen=True, kw_only=True)
class PartVerdict:
    """One contrast of a claim."""

    part: Part
    seeds: tuple[int, ...] = ()  # of each term
    estimate: Estimate | None = None
    spread: Spread | None = None
    p: float = 1.0  # small where the part holds
    p_contrary: float = 1.0  # small where it is contradicted
    seeds_to_decide: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimVerdict:
    """A claim of the paper and what became of it."""

    claim: Claim
    word: ClaimWord | NoWord
    p: float  # of the claim as a whole
    p_holm: float  # corrected for all claims of the table
    parts: tuple[PartVerdict, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Everything that can be said of a table at one scale."""

    numbers: Mapping[Cell, NumberVerdict]  # of the cells that the paper prints
    claims: tuple[ClaimVerdict, ...]
    spreads: Mapping[str, Spread]  # metric -> pooled over the table's cells

    @property
    def disappointing(self) -> list[str]:
        """What --strict objects to: numbers that are below, claims that are contradicted."""
        below = [
            f"{cell.row}, {cell.column}, {in_words(cell.metric)}"
            for cell, found in self.numbers.items()
            if found.word == "below"
        ]
        contradicted = [found.claim.id for found in self.claims if found.word == "contradicted"]
        return [*(f"below: {name}" for name in below), *(f"contradicted: {name}" for name in contradicted)]


def judge(table: Table, results: Results) -> Judgement:
    """Verdicts on all printed numbers and all claims of a table.

    A claim's p-value is the largest of its parts', so that it holds only if each does; those of
    all declared claims, run or not, are corrected by Holm. It is contradicted if one of its n
    parts is, at level 0.05 / n.
    """
    spreads = _spreads(table, results)
    numbers = {
        cell: _number(cell, cell.paper, results, spreads) for cell in table.cells if cell.paper is not None
    }
    judged = [_parts(claim, results, spreads, claims=len(table.claims)) for claim in table.claims]
    p_values = [max(part.p for part in parts) for parts in judged]
    claims = tuple(
        _claim(claim, parts, results, p=p, p_holm=p_holm)
        for claim, parts, p, p_holm in zip(table.claims, judged, p_values, holm(p_values), strict=True)
    )
    return Judgement(numbers=numbers, claims=claims, spreads=spreads)


def _spreads(table: Table, results: Results) -> dict[str, Spread]:
    """The pooled spread of each metric over the runs of all cells; two cells with one run count once."""
    if results.scale not in CLAIM_SCALES:
        return {}
    behind = [cell for claim in table.claims for part in claim.parts for _, cell in part.terms]
    cells = {(results.twins[cell.recipe], cell.metric): cell for cell in (*table.cells, *behind)}
    return {
        metric: pooled_spread(
            [results.values(cell) for (_, of), cell in cells.items() if of == metric],
            prior=kind_of(metric).prior[results.scale],
        )
        for metric in {metric for _, metric in cells}
    }


def _number(cell: Cell, printed: float, results: Results, spreads: Mapping[str, Spread]) -> NumberVerdict:
    delta = _delta(kind_of(cell.metric))
    values = results.values(cell)
    if not values:
        return NumberVerdict(word="not comparable" if cell in results.published else "not run", delta=delta)
    if results.scale != "paper" or _is_of_some_images(results, cell):
        return NumberVerdict(word="smoke" if results.scale == "smoke" else "not comparable", delta=delta)
    spread = spreads[cell.metric]
    estimate = difference_from_print(values, printed, spread, rounding=cell.rounding)
    word = number_word(estimate, delta=delta)
    return NumberVerdict(
        word=word,
        delta=delta,
        seeds=len(values),
        estimate=estimate,
        spread=spread,
        seeds_to_decide=seeds_for_number(estimate.value, spread, rounding=cell.rounding, delta=delta)
        if word == "undecided"
        else None,
    )


def _is_of_some_images(results: Results, cell: Cell) -> bool:
    """Whether somebody asked for fewer images than the paper has."""
    twin = results.twins[cell.recipe]
    return (twin.train_images, twin.test_images) != (None, None)


def _delta(kind: Kind) -> float:
    assert kind.delta is not None, "only kinds with a margin are printed in the paper"
    return kind.delta


def _parts(
    claim: Claim, results: Results, spreads: Mapping[str, Spread], *, claims: int
) -> tuple[PartVerdict, ...]:
    parts = len(claim.parts)
    return tuple(_part(part, results, spreads, claims=claims, parts=parts) for part in claim.parts)


def _part(
    part: Part, results: Results, spreads: Mapping[str, Spread], *, claims: int, parts: int
) -> PartVerdict:
    terms = [(c, results.values(cell)) for c, cell in part.terms]
    seeds = tuple(len(values) for _, values in terms)
    if (
        results.scale not in CLAIM_SCALES
        or not all(seeds)
        or _on_several_devices(part, results)
        or any(_is_of_some_images(results, cell) for _, cell in part.terms)
    ):
        return PartVerdict(part=part, seeds=seeds)
    # the metrics of a contrast are of one kind; where they differ, the largest spread counts
    spread = max((spreads[cell.metric] for _, cell in part.terms), key=lambda spread: spread.sd)
    estimate = contrast(terms, spread)
    return PartVerdict(
        part=part,
        seeds=seeds,
        estimate=estimate,
        spread=spread,
        p=float(part.question.p(estimate)),
        p_contrary=float(part.question.p_contrary(estimate)),
        seeds_to_decide=seeds_for_claim(
            estimate.value,
            [c for c, _ in part.terms],
            spread,
            part.question,
            claims=claims,
            parts=parts,
        ),
    )


def _claim(
    claim: Claim, parts: tuple[PartVerdict, ...], results: Results, *, p: float, p_holm: float
) -> ClaimVerdict:
    p_contrary = min(1.0, len(parts) * min(part.p_contrary for part in parts))
    word: ClaimWord | NoWord
    note = ""
    if results.scale == "smoke":
        word = "smoke"
    elif any(_is_of_some_images(results, cell) for part in parts for _, cell in part.part.terms):
        word, note = "not comparable", "made from some of the images only (--train-images, --test-images)"
    elif _on_published_weights(parts, results):
        word, note = "not comparable", ON_PUBLISHED_WEIGHTS
    elif all(part.estimate is not None for part in parts):
        word = claim_word(p_holm, p_contrary)
    elif _unmeasured(parts, results):
        word, note = "undecided", _why_undecided(parts, results)
    else:
        word = "not run"
    return ClaimVerdict(claim=claim, word=word, p=p, p_holm=p_holm, parts=parts, note=note)


ON_PUBLISHED_WEIGHTS = (
    "not judged: the baseline column is the published weights, evaluated once, and no run of ours; a claim needs our "
    "own baseline, of several seeds (--baseline own)"
)


def _on_published_weights(parts: tuple[PartVerdict, ...], results: Results) -> bool:
    """Whether a claim rests on a baseline that was not run, as published weights are shown in its place."""
    replaced = {cell.recipe for cell in results.published}
    cells = [cell for part in parts for _, cell in part.part.terms]
    return any(cell.recipe in replaced and not results.values(cell) for cell in cells)


def _why_undecided(parts: tuple[PartVerdict, ...], results: Results) -> str:
    if any(_on_several_devices(part.part, results) for part in parts):
        return (
            "the runs were made on different devices, or fed in different ways: their times can't be compared"
        )
    return (
        "the runs are there, but some show no such number (no growth period was found, or nothing was probed)"
    )


def _on_several_devices(part: Part, results: Results) -> bool:
    """Whether a comparison of times would be one of devices."""
    timed = [cell for _, cell in part.terms if kind_of(cell.metric).one_device]
    records = [record for cell in timed for record in results.found(cell)]
    return len({_conditions(record.environment) for record in records}) > 1


def _conditions(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """What a time depends on besides the run; records older than the choice of an augmentation are PIL's."""
    fed = environment.get("augmentation", "pil")
    return environment["device_name"], environment["precision"], fed


def _unmeasured(parts: tuple[PartVerdict, ...], results: Results) -> bool:
    """Whether every run is there, and only the number that a claim is about is missing."""
    return all(results.found(cell) for part in parts for _, cell in part.part.terms)


def interval(verdict: PartVerdict) -> tuple[float, float]:
    """The bounds that are shown for a contrast: each is one-sided at 95 %, so that both together hold 90 %."""
    assert verdict.estimate is not None
    return verdict.estimate.lower(0.95), verdict.estimate.upper(0.95)


def wanted(part: Part) -> str:
    """What a part has to do, in a few signs.

    >>> from dcvit.statistics import StaysWithin
    >>> wanted(Part(name="", terms=(), question=StaysWithin(delta=3.0)))
    'within ±3'
    """
    match part.question:
        case Exceeds(bound=bound, size=None):
            return f"> {bound:g}"
        case Exceeds(bound=bound, size=size):
            return f"> {bound:g} (paper: {size:+g})"
        case StaysWithin(delta=delta):
            return f"within ±{delta:g}"
