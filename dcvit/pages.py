"""A table's results as a GitHub markdown page: the paper's numbers beside ours, and the claims. No torch."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from tabulate import tabulate

from dcvit.facts import by_augmentation, made_with, published_weights, scale_differences
from dcvit.ledger import Record
from dcvit.quantities import in_words, kind_of
from dcvit.statistics import agreement
from dcvit.tables import Cell, Results, Table
from dcvit.verdicts import ClaimVerdict, Judgement, judge, wanted
from dcvit.wording import (
    MARKED,
    NUMBER_RULE,
    RULE,
    SMOKE_WARNING,
    as_text,
    count,
    duration,
    gain_shown,
    mean,
    number_verdict,
    part_shown,
    said,
    short,
    signed,
    unique,
    which_epoch,
)


def render(table: Table, results: Results) -> str:
    """The table as a page."""
    judgement = judge(table, results)
    sections = [
        f"# {table.heading}",
        SMOKE_WARNING.format(images=as_text(results.images)) if results.scale == "smoke" else "",
        _facts_line(results),
        _mixed(table, results),
        at_a_glance(table, results),
        _published(results),
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
    words = [f"- {found.word}: {said(found.claim)} [{found.claim.id}]" for found in judgement.claims]
    sections = [
        f"# {table.heading}",
        SMOKE_WARNING.format(images=as_text(results.images)) if results.scale == "smoke" else "",
        _facts_line(results),
        _mixed(table, results),
        at_a_glance(table, results),
        "\n".join(words) if results.scale != "smoke" else "",
    ]
    return "\n\n".join(section for section in sections if section)


def _facts_line(results: Results) -> str:
    records = list(results.records.values())
    if not records:
        return f"Scale {results.scale}, {as_text(results.images)}. No run has finished."
    facts = as_text(made_with(records))
    return (
        f"Scale {results.scale}; images: {as_text(results.images)} "
        f"(fingerprint {', '.join(facts['data_fingerprint'])}); "
        f"{count(facts['runs'], 'run')} of {count(len(results.seeds), 'seed')} each, "
        f"{duration(facts['seconds'])} "
        f"of training in all, begun {facts['started']}; device: {', '.join(facts['device'])}, "
        f"{', '.join(facts['precision'])}; augmentation: {', '.join(facts['augmentation'])}; "
        f"torch {', '.join(facts['torch'])}, timm {', '.join(facts['timm'])}; "
        f"commit {', '.join(facts['commit'])}."
    )


def _mixed(table: Table, results: Results) -> str:
    """A warning where runs differ in who augmented their images, which nothing else on the page would show."""
    found = by_augmentation(table, results)
    if not found:
        return ""
    ways = "; ".join(f"by {as_text(name)}: {as_text(' / '.join(cells))}" for name, cells in found.items())
    return (
        "**Not all runs were augmented alike.** Images were cropped and changed "
        + ways
        + ". The recipe is the same, "
        "but a difference between such cells is also one between the two ways: train all of a table with one "
        "`--augmentation`, and all with `--cache` or all without."
    )


# --- the numbers ---------------------------------------------------------------------------


def at_a_glance(table: Table, results: Results) -> str:
    """The table in the paper's shape, and below it, under headings, what the paper does not have."""
    units = {kind_of(cell.metric).unit for cell in table.cells}
    printed = any(cell.paper is not None for cell in table.cells)
    parts = [
        f"## At a glance\n\n{which_epoch(table)}, mean over seeds, ours"
        + (" (the paper's number in brackets)" if printed else "")
        + (f"; {units.pop()}." if len(units) == 1 else ".")
    ]
    for group in unique(cell.group for cell in table.cells):
        if group:
            parts.append(f"### {group}")
        parts.append(_glance(table, results, [cell for cell in table.cells if cell.group == group]))
    if results.published:
        parts.append(MARKED)
    return "\n\n".join(parts)


def _glance(table: Table, results: Results, cells: Sequence[Cell]) -> str:
    at: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        at.setdefault((cell.row, cell.column), []).append(cell)
    rows, columns = unique(row for row, _ in at), unique(column for _, column in at)
    facts = unique(name for row in rows for name in table.row_facts.get(row, {}))
    two = columns[:1] == [table.baseline] and len(columns) == 2
    numbers = range(max(map(len, at.values())))  # of a place: top-1, and in some tables top-5

    def told(number: int) -> str:
        """What follows a heading where a place has several numbers."""
        return f", {in_words(at[rows[0], columns[0]][number].metric)}" if len(numbers) > 1 else ""

    def shown(row: str) -> Iterator[str]:
        for number in numbers:
            there = [at.get((row, column), [])[number:] for column in columns]
            yield from (_beside(results, cells[0]) if cells else "" for cells in there)
            if two:
                yield gain_shown(table, results, there[-1][0])

    lines = [
        [
            row,
            *(table.row_facts.get(row, {}).get(name, "") for name in facts),
            *(_here(results, at[row, columns[0]][0]) if facts else ()),
            *shown(row),
        ]
        for row in rows
    ]
    head = ["", *facts, *(["parameters here", "resolution here"] if facts else [])]
    for number in numbers:
        head += [f"{column}{told(number)}" for column in columns]
        head += [f"gain here{told(number)}"] if two else []
    return _markdown(lines, head)


def _here(results: Results, cell: Cell) -> tuple[str, str]:
    """Parameters, where a record has counted them, and resolution of the network that was trained."""
    found = results.found(cell)
    twin = results.twins[cell.recipe]
    return (f"{found[0].parameters / 1e6:.3g}M" if found else ""), f"{twin.resolution} px"


def _beside(results: Results, cell: Cell) -> str:
    """Ours, and the paper's in brackets."""
    printed = "" if cell.paper is None else f" ({cell.paper:.{cell.digits}f})"
    return mean(results, cell) + printed


def _every_cell(table: Table, results: Results, judgement: Judgement) -> str:
    """A line a cell. Columns that would be empty throughout are left out, and so are the sentences about them."""
    accuracies = any(cell.metric in ("top1", "top5") for cell in table.cells)
    shown = {
        "gain in the paper": bool(table.baseline),
        "gain here": bool(table.baseline),
        "best": accuracies,
        **dict.fromkeys(VERDICT_HEAD, results.scale == "paper"),
    }
    lines = [_cell_shown(cell, table, results, judgement) for cell in table.cells]
    head = ["row", "column", "number", "paper", "ours", "gain in the paper", "gain here", "best", "seeds"]
    kept = [i for i, name in enumerate([*head, *VERDICT_HEAD]) if shown.get(name, True)]
    sentences = [
        f"{which_epoch(table)}, mean over seeds, ± standard deviation where there are two or more.",
        "A gain is over the baseline beside it: the paper's over the paper's, ours over ours."
        if table.baseline
        else "",
        "Best is the best epoch on the test images, shown and not used." if accuracies else "",
        {
            "smoke": "",
            "small": "Numbers get no verdict at this scale: other images and smaller networks have other accuracies.",
            "paper": NUMBER_RULE,
        }[results.scale],
    ]
    return (
        "## Every cell\n\n"
        + " ".join(sentence for sentence in sentences if sentence)
        + "\n\n"
        + _markdown([[line[i] for i in kept] for line in lines], [[*head, *VERDICT_HEAD][i] for i in kept])
    )


VERDICT_HEAD = ("verdict", "ours - paper", "90 % interval", "s", "df", "delta", "seeds to decide")


def _cell_shown(cell: Cell, table: Table, results: Results, judgement: Judgement) -> list[str]:
    over = table.baseline_of(cell)
    digits = kind_of(cell.metric).digits
    best = results.values(cell, "best") if cell.metric in ("top1", "top5") else []
    paper_gain = None if over is None or cell.paper is None or over.paper is None else cell.paper - over.paper
    return [
        cell.row,
        cell.column,
        in_words(cell.metric),
        "" if cell.paper is None else f"{cell.paper:.{cell.digits}f}",
        mean(results, cell),
        signed(paper_gain, cell.digits),
        gain_shown(table, results, cell, digits),
        f"{fmean(best):.{digits}f}" if best else "",
        _seeds(results, cell),
        *number_verdict(cell, judgement),
    ]


def _published(results: Results) -> str:
    """Where the numbers of published weights come from, a line for each network."""
    if not results.published:
        return ""
    lines = []
    for found in as_text(published_weights(results)):
        if found["top1"] is None:
            lines.append([found["row"], found["name"], "not evaluated", *[""] * 6])
            continue
        printed = "{:g} and {:g}".format(*found["printed"])
        measured = f"{found['top1']:.3f} and {found['top5']:.3f}"
        images = f"{found['images']:,} (fingerprint {found['data_fingerprint']})"
        made = f"{found['precision']} on {found['device']}; timm {found['timm']}; commit {found['commit']}"
        of_weights = [found[name] for name in ("weights", "origin", "protocol")]
        lines.append([found["row"], found["name"], measured, printed, *of_weights, images, made])
    head = ["row", "timm's name", "top-1 and top-5", "printed", "sha256", "from", "protocol", "images", "by"]
    return (
        "## Published weights, evaluated here\n\nBy the official protocol of their recipe; printed is what their "
        "authors print for the same protocol.\n\n" + _markdown(lines, head)
    )


def _seeds(results: Results, cell: Cell) -> str:
    if cell in results.published:
        return "published weights"
    return f"{len(results.values(cell))} of {len(results.seeds)}"


# --- the claims ----------------------------------------------------------------------------


def _claims(table: Table, results: Results, judgement: Judgement) -> str:
    if not table.claims:
        return ""
    lines = []
    for found in judgement.claims:
        readings = f" (read as: {found.claim.reading})" if found.claim.reading else ""
        lines.append([f"`{found.claim.id}`", f"{said(found.claim)}{readings}", f"**{found.word}**"])
    rule = (
        "No claim is judged at scale smoke: toys say nothing about the paper."
        if results.scale == "smoke"
        else RULE
    )
    sections = ["## The paper's claims", rule, _markdown(lines, ["claim", "what the paper says", "verdict"])]
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
        f"- `{as_text(name)}`: {as_text(why)}" for name, why in results.problems.items()
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
