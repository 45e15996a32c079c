"""A table's results as a GitHub markdown page: the paper's numbers beside ours, and the claims. No torch."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from tabulate import tabulate

from dcvit.facts import made_with, scale_differences
from dcvit.ledger import Record
from dcvit.quantities import in_words, kind_of
from dcvit.statistics import Estimate, Spread, agreement
from dcvit.tables import Cell, Results, Table
from dcvit.verdicts import ClaimVerdict, Judgement, PartVerdict, judge, wanted

SMOKE_WARNING = (
    "**Scale smoke: these numbers prove that the code runs. They say nothing about the paper.** "
    "The networks are toys, the images are {images}, and a run takes seconds."
)
RULE = (
    "The standard deviation s is pooled over the table's cells with a weak prior worth four degrees of freedom. A "
    "claim holds if each of its contrasts is above 0 (or above and below what is said) by a one-sided test "
    "at 5 %, corrected for the number "
    "of claims in the table (Holm); it is contradicted if the upper 95 % bound of a contrast lies below "
    "half the size that the "
    "paper gives (where it gives none: below 0), at 5 % shared among a claim's contrasts. Both can be true "
    "at once: it holds, and is smaller than half. "
    "The bounds shown are one-sided at 95 % each and not corrected. The last column says how many seeds of "
    "every run would decide, "
    "should estimate and spread stay as they are."
)
NUMBER_RULE = (
    "A number is reproduced if the 90 % interval of our mean minus the printed value lies within ±delta, "
    "which counts the paper's own run and its "
    "rounding as uncertain, too; below or above, if it lies wholly outside."
)


def render(table: Table, results: Results) -> str:
    """The table as a page."""
    judgement = judge(table, results)
    sections = [
        f"# {table.heading}",
        SMOKE_WARNING.format(images=results.images) if results.scale == "smoke" else "",
        _facts_line(results),
        at_a_glance(table, results),
        _every_cell(table, results, judgement),
        _claims(table, results, judgement),
        _image_by_image(table, results),
        _problems(results),
        _scale_section(table, results),
        "## Not in the paper, chosen here\n\n" + "\n".join(f"- {line}" for line in table.chosen_here),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def summary(table: Table, results: Results) -> str:
    """What a terminal shows of the page: its head, the table, and a word for each claim."""
    judgement = judge(table, results)
    words = [f"- {found.word}: {found.claim.sentence} [{found.claim.id}]" for found in judgement.claims]
    sections = [
        f"# {table.heading}",
        SMOKE_WARNING.format(images=results.images) if results.scale == "smoke" else "",
        _facts_line(results),
        at_a_glance(table, results),
        "\n".join(words) if results.scale != "smoke" else "",
    ]
    return "\n\n".join(section for section in sections if section)


def _facts_line(results: Results) -> str:
    records = list(results.records.values())
    if not records:
        return f"Scale {results.scale}, {results.images}. No run has finished."
    facts = made_with(records)
    return (
        f"Scale {results.scale}; images: {results.images} (fingerprint {', '.join(facts['data_fingerprint'])}); "
        f"{count(facts['runs'], 'run')} of {count(len(results.seeds), 'seed')} each, "
        f"{duration(facts['seconds'])} "
        f"of training in all, begun {facts['started']}; device: {', '.join(facts['device'])}, "
        f"{', '.join(facts['precision'])}; torch {', '.join(facts['torch'])}, timm {', '.join(facts['timm'])}; "
        f"commit {', '.join(facts['commit'])}."
    )


# --- the numbers ---------------------------------------------------------------------------


def at_a_glance(table: Table, results: Results) -> str:
    """The table in the paper's shape, and below it, under headings, what the paper does not have."""
    units = {kind_of(cell.metric).unit for cell in table.cells}
    parts = [
        f"## At a glance\n\n{which_epoch(table)}, mean over seeds, ours (the paper's number in brackets)"
        + (f"; {units.pop()}." if len(units) == 1 else ".")
    ]
    for group in unique(cell.group for cell in table.cells):
        if group:
            parts.append(f"### Not in the paper: {group}")
        parts.append(_glance(table, results, [cell for cell in table.cells if cell.group == group]))
    return "\n\n".join(parts)


def which_epoch(table: Table) -> str:
    """Which epoch the numbers of a table are of, for the beginning of a sentence."""
    if any("/" in cell.metric for cell in table.cells):
        return "Weights of the best epoch on the test images"
    accuracies = all(cell.metric in ("top1", "top5") for cell in table.cells)
    return "Last epoch" if accuracies else "From the evolution of whole runs"


def _glance(table: Table, results: Results, cells: Sequence[Cell]) -> str:
    at: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        at.setdefault((cell.row, cell.column), cell)  # of several metrics in a place the first is shown
    rows, columns = unique(row for row, _ in at), unique(column for _, column in at)
    facts = unique(name for row in rows for name in table.row_facts.get(row, {}))
    two = columns[:1] == [table.baseline] and len(columns) == 2
    lines = [
        [
            row,
            *(table.row_facts.get(row, {}).get(name, "") for name in facts),
            *(_here(results, at[row, columns[0]]) if facts else ()),
            *(_beside(results, at.get((row, column))) for column in columns),
            *([signed(gain(table, results, at[row, columns[-1]]))] if two else []),
        ]
        for row in rows
    ]
    here = ["parameters here", "resolution here"] if facts else []
    return _markdown(lines, ["", *facts, *here, *columns, *(["gain here"] if two else [])])


def _here(results: Results, cell: Cell) -> tuple[str, str]:
    """Parameters, where a record has counted them, and resolution of the network that was trained."""
    found = results.found(cell)
    twin = results.twins[cell.recipe]
    return (f"{found[0].parameters / 1e6:.3g}M" if found else ""), f"{twin.resolution} px"


def _beside(results: Results, cell: Cell | None) -> str:
    """Ours, and the paper's in brackets; "" where the table has no such cell."""
    if cell is None:
        return ""
    printed = "" if cell.paper is None else f" ({cell.paper:.{cell.digits}f})"
    return mean(results, cell) + printed


def _every_cell(table: Table, results: Results, judgement: Judgement) -> str:
    judged = results.scale == "paper"
    lines = []
    for cell in table.cells:
        over = table.baseline_of(cell)
        digits = kind_of(cell.metric).digits
        best = results.values(cell, "best") if cell.metric in ("top1", "top5") else []
        paper_gain = (
            None if over is None or cell.paper is None or over.paper is None else cell.paper - over.paper
        )
        lines.append(
            [
                cell.row,
                cell.column,
                in_words(cell.metric),
                "" if cell.paper is None else f"{cell.paper:.{cell.digits}f}",
                mean(results, cell),
                signed(paper_gain, cell.digits),
                signed(gain(table, results, cell), digits),
                f"{fmean(best):.{digits}f}" if best else "",
                f"{len(results.values(cell))} of {len(results.seeds)}",
                *(number_verdict(cell, judgement) if judged else ()),
            ]
        )
    head = ["row", "column", "number", "paper", "ours", "gain in the paper", "gain here", "best", "seeds"]
    if judged:
        head += ["verdict", "ours - paper", "90 % interval", "s", "df", "delta", "seeds to decide"]
    why_not = {
        "smoke": "",
        "small": " Numbers get no verdict at this scale: other images and smaller networks have other accuracies.",
        "paper": f" {NUMBER_RULE}",
    }[results.scale]
    return (
        f"## Every cell\n\n{which_epoch(table)}, mean over seeds, ± standard deviation where there are "
        f"two or more. A gain is "
        "over the baseline beside it: the paper's over the paper's, ours over ours. Best is the best epoch "
        "on the test images, "
        f"shown and not used.{why_not}\n\n" + _markdown(lines, head)
    )


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


def _measured(estimate: Estimate, spread: Spread, digits: int) -> list[str]:
    low, high = estimate.below(0.95), estimate.above(0.95)
    return [
        signed(estimate.value, digits),
        f"{low:+.{digits}f} to {high:+.{digits}f}",
        f"{spread.sd:.{max(digits, 2)}f}",
        f"{estimate.df:g}",
    ]


def mean(results: Results, cell: Cell) -> str:
    """The cell's mean over seeds, with the standard deviation where there are several; else why there is none."""
    values, digits = results.values(cell), kind_of(cell.metric).digits
    if not values:
        if any(name in results.problems for name in results.ids(cell)):
            return "failed"
        return "none found" if results.found(cell) else "not run"
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{round(fmean(values), digits) + 0.0:.{digits}f}{spread}"  # + 0.0: there is no -0.00


def gain(table: Table, results: Results, cell: Cell) -> float | None:
    """Mean of the cell over the mean of its baseline; None where either has no number."""
    over = table.baseline_of(cell)
    if over is None or not results.values(cell) or not results.values(over):
        return None
    return fmean(results.values(cell)) - fmean(results.values(over))


# --- the claims ----------------------------------------------------------------------------


def _claims(table: Table, results: Results, judgement: Judgement) -> str:
    if not table.claims:
        return ""
    lines = []
    for found in judgement.claims:
        readings = f" (read as: {found.claim.reading})" if found.claim.reading else ""
        lines.append([f"`{found.claim.id}`", f"{found.claim.sentence}{readings}", f"**{found.word}**"])
    rule = (
        "No claim is judged at scale smoke: toys say nothing about the paper."
        if results.scale == "smoke"
        else RULE
    )
    sections = ["## The paper's claims", rule, _markdown(lines, ["claim", "in the paper's words", "verdict"])]
    notes = [f"- `{found.claim.id}`: {found.note}" for found in judgement.claims if found.note]
    sections.append("\n".join(notes))
    sections.append(_contrasts(judgement.claims))
    return "\n\n".join(section for section in sections if section)


def _contrasts(claims: Sequence[ClaimVerdict]) -> str:
    lines = [
        [f"`{found.claim.id}`", part.part.name, wanted(part.part), *part_shown(part, found)]
        for found in claims
        for part in found.parts
    ]
    head = [
        "claim",
        "contrast",
        "wanted",
        "estimate",
        "95 % bounds",
        "s",
        "df",
        "seeds",
        "p",
        "p (Holm)",
        "seeds to decide",
    ]
    return _markdown(lines, head)


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


# --- image by image ------------------------------------------------------------------------


def _image_by_image(table: Table, results: Results) -> str:
    """On how many test images two networks disagree: between two seeds, and against the baseline of the same seed."""
    lines = []
    for cell in table.cells:
        if cell.metric != "top1":
            continue
        records = results.found(cell)
        over = table.baseline_of(cell)
        others = {record.seed: record for record in results.found(over)} if over else {}
        between = [
            _agree(a, b).disagreement
            for i, a in enumerate(records)
            for b in records[i + 1 :]
            if _comparable(a, b)
        ]
        pairs = [(record, others[record.seed]) for record in records if record.seed in others]
        pairs = [(record, other) for record, other in pairs if _comparable(record, other)]
        if not between and not pairs:
            continue
        against = ["", "", ""]
        if pairs:
            first, base = pairs[0]
            found = _agree(first, base)
            against = [f"{found.disagreement:.1f}", f"+{found.first} -{found.second}", f"{found.mcnemar:.2g}"]
        lines.append([cell.row, cell.column, f"{fmean(between):.1f}" if between else "", *against])
    if not lines:
        return ""
    head = [
        "row",
        "column",
        "seeds disagree, %",
        "disagrees with baseline, %",
        "right where it is wrong, and the reverse",
        "McNemar p",
    ]
    return (
        "## Image by image\n\nThe share of test images on which one network is right and another wrong: "
        "two seeds of one run (mean over "
        "pairs), and a run against its baseline, the first seed of both. McNemar's exact p-value is about "
        "*these two networks*, not about "
        "the method: another seed would be another network.\n\n" + _markdown(lines, head)
    )


def _comparable(a: Record, b: Record) -> bool:
    return a.data["test_images"] == b.data["test_images"] and a.data["fingerprint"] == b.data["fingerprint"]


def _agree(a: Record, b: Record) -> Any:
    return agreement(a.correct, b.correct, a.data["test_images"])


# --- the rest ------------------------------------------------------------------------------


def _problems(results: Results) -> str:
    if not results.problems:
        return ""
    return "## Runs that failed\n\n" + "\n".join(
        f"- `{name}`: {why}" for name, why in results.problems.items()
    )


def _scale_section(table: Table, results: Results) -> str:
    changed = scale_differences(table, results)
    if not changed:
        return ""
    all_rows = unique(cell.row for cell in table.cells)
    lines = [
        [f"`{name}`", short(old), short(new), "all" if rows == all_rows else ", ".join(rows)]
        for name, old, new, rows in changed
    ]
    return f"## What scale {results.scale} changes\n\n" + _markdown(
        lines, ["field of the recipe", "paper", "here", "rows"]
    )


def _markdown(lines: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    # without disable_numparse tabulate turns 72.20 into 72.2
    return tabulate(
        escaped, [name.replace("|", "\\|") for name in head], tablefmt="github", disable_numparse=True
    )


def short(value: Any) -> str:
    """A value of a recipe.

    >>> short(3e-4 + 1e-20), short((2, 6)), short(None)
    ('0.0003', '(2, 6)', 'None')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)


def unique(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


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
