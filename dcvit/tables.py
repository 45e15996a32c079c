"""A table of the paper as a value: its cells, its claims, and what runs have made of it. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dcvit.ledger import Record
from dcvit.quantities import kind_of, value
from dcvit.recipe import Recipe, run_id
from dcvit.scores import Score
from dcvit.statistics import Exceeds, Question, StaysWithin


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number: which run makes it, and what the paper says, if it says anything."""

    row: str
    column: str
    metric: str  # a name that `dcvit.quantities` knows
    recipe: Recipe  # at paper scale
    paper: float | None = None  # None: a cell of our own
    digits: int = 1  # that the paper prints
    group: str = ""  # heading of a part of the table that is our own; "" is the paper's

    @property
    def rounding(self) -> float:
        """The step between two numbers that the paper could have printed."""
        return float(10.0**-self.digits)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A contrast of cells, sum_k c_k cell_k, and what a claim says of it."""

    name: str
    terms: tuple[tuple[float, Cell], ...]
    question: Question

    def __post_init__(self) -> None:
        kinds = {kind_of(cell.metric).unit for _, cell in self.terms}
        if len(kinds) > 1:
            raise ValueError(
                f"{self.name}: a contrast of numbers in {' and '.join(sorted(kinds))} means nothing"
            )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper that runs can bear out or not; it holds only if each of its parts does."""

    id: str
    sentence: str  # in the paper's words, but for what a table shows and no sentence says
    quoted: bool = True  # whether these are the paper's words
    reading: str = ""  # how it is taken here, where that is not plain
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the paper, or (without a number) one of our own about its figures."""

    number: int | None
    title: str
    script: str = ""  # the module of reproductions/ that makes it
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...] = ()
    baseline: (
        str  # the column (or the row, if no column has this name) that gains are over; "": there are no gains
    )
    row_facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # row -> heading -> text
    chosen_here: tuple[str, ...]  # choices that the paper leaves open

    @property
    def name(self) -> str:
        """What its files are called."""
        return self.script.split("_")[0] if self.number is None else f"table{self.number}"

    @property
    def heading(self) -> str:
        """Number and title."""
        return self.title if self.number is None else f"Table {self.number}. {self.title}"

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The cell that `cell` is a gain over; None for a baseline itself, and where there are no gains.

        It is of the same group, or of the paper's own where that has none, and of the same kind of number.
        """
        columns = {other.column for other in self.cells}
        place = (cell.row, self.baseline) if self.baseline in columns else (self.baseline, cell.column)
        if not self.baseline or place == (cell.row, cell.column):
            return None
        there = [other for other in self.cells if (other.row, other.column) == place]
        there = [other for other in there if _sort(other) == _sort(cell)]
        own = [other for other in there if other.group == cell.group]
        return next(iter(own or there), None)

    def only(self, names: Sequence[str]) -> "tuple[Cell, ...]":
        """The cells of the named rows and columns: of the rows if only rows are named, where both are, of both.

        ValueError for a name that is neither; all cells for no name.
        """
        rows, columns = _unique(cell.row for cell in self.cells), _unique(cell.column for cell in self.cells)
        for name in names:
            if name not in rows and name not in columns:
                raise ValueError(
                    f"--only {name!r} is no row or column of {self.heading!r}; rows: {', '.join(map(repr, rows))}; "
                    f"columns: {', '.join(map(repr, columns))}"
                )
        in_rows = [name for name in names if name in rows] or rows
        in_columns = [name for name in names if name in columns] or columns
        return tuple(cell for cell in self.cells if cell.row in in_rows and cell.column in in_columns)


def _sort(cell: Cell) -> str:
    """What makes two numbers comparable: top1 and top1, but not top1 and top5."""
    return cell.metric.rsplit("/", 1)[-1]


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


# --- how a script declares its claims ------------------------------------------------------


def find_cell(cells: Iterable[Cell], row: str, column: str, metric: str = "") -> Cell:
    """The cell at a place; the first there if no metric is given. KeyError if there is none."""
    for cell in cells:
        if (cell.row, cell.column) == (row, column) and metric in ("", cell.metric):
            return cell
    raise KeyError(f"no cell {row!r}, {column!r} {metric}")


def exceeds(name: str, *terms: tuple[float, Cell], size: float | None = None, bound: float = 0.0) -> Part:
    """A part that claims: the contrast is above `bound`.

    Its size is that of the printed numbers, where all are printed. ValueError if they do not even have the
    claimed sign.
    """
    printed = [cell.paper for _, cell in terms]
    if size is None and None not in printed:
        size = round(sum(c * cell.paper for c, cell in terms if cell.paper is not None), 10)
    if size is not None and size <= bound:
        raise ValueError(f"{name}: the paper's own numbers give {size:g}, which is not above {bound:g}")
    return Part(name=name, terms=terms, question=Exceeds(bound=bound, size=size))


def more(name: str, larger: Cell, smaller: Cell, *, size: float | None = None) -> Part:
    """A part that claims: one cell is above another."""
    return exceeds(name, (1, larger), (-1, smaller), size=size)


def stays_within(name: str, *terms: tuple[float, Cell], delta: float | None = None) -> Part:
    """A part that claims: the contrast is 0 but for what counts as equal (the kind's delta by default)."""
    margin = kind_of(terms[0][1].metric).delta if delta is None else delta
    assert margin is not None, f"{name}: this kind of number has no margin of its own, give one"
    return Part(name=name, terms=terms, question=StaysWithin(delta=margin))


# --- what runs have made of it -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Results:
    """What there is for a table at one scale."""

    scale: str
    images: str  # in words
    seeds: tuple[int, ...]
    twins: Mapping[Recipe, Recipe]  # recipe at paper scale -> the one that was trained
    records: Mapping[str, Record]  # run id -> finished run
    problems: Mapping[str, str] = field(default_factory=dict)  # run id -> why there is no record
    patch_probes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # run id -> its scores
    # cells that published weights fill instead of runs -> their score; None: not evaluated yet
    published: Mapping[Cell, Score | None] = field(default_factory=dict)

    def ids(self, cell: Cell) -> list[str]:
        """The runs behind a cell, one a seed."""
        return [run_id(self.twins[cell.recipe], seed) for seed in self.seeds]

    def found(self, cell: Cell) -> list[Record]:
        """The finished runs behind a cell; for a number of the patch probe, those that it has probed.

        None for a cell that published weights fill: their score must never be taken for a seed.
        """
        if cell in self.published:
            return []
        done = self.patch_probes if "/" in cell.metric else self.records
        return [self.records[name] for name in self.ids(cell) if name in self.records and name in done]

    def values(self, cell: Cell, which: str = "last") -> list[float]:
        """The cell's numbers, one for each seed that has it; `which` is last or best."""
        numbers = (
            value(record, self.patch_probes.get(record.run_id), cell.metric, which=which)
            for record in self.found(cell)
        )
        return [number for number in numbers if number is not None]

    def published_value(self, cell: Cell) -> float | None:
        """What published weights got in a cell; None for cells of runs, and for weights not evaluated yet."""
        score = self.published.get(cell)
        return None if score is None else float(getattr(score.over_all, cell.metric))
