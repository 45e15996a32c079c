"""Records that lie in a folder, put together to tables, for pages that train nothing. No torch.

A record is only ever shown beside others of its own kind: of one scale, one data set and this
version's recipes. What is of another kind is refused and named.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dcvit import patch_probe
from dcvit.errors import DataError
from dcvit.ledger import Record, UnusableRecord, read
from dcvit.recipe import Recipe, foreign_fields, id_of_data, run_id
from dcvit.runs import all_runs
from dcvit.scale import SCALES
from dcvit.setting import DEFAULT_SEEDS, Setting, of_record
from dcvit.tables import Results, Table

SHORTEST_NAME = 4  # hex digits by which a run may be called


@dataclass(frozen=True)
class Filed:
    """A record and the folder in which it lies."""

    folder: Path
    record: Record


def read_all(place: Path) -> tuple[list[Filed], dict[Path, str]]:
    """The usable records of a folder that a table's command wrote (or `tables/SCALE`), and what ails the others."""
    found, unusable = [], {}
    for path in _records_below(place):
        try:
            found.append(_read_one(path.parent))
        except UnusableRecord as error:
            unusable[path] = str(error)
    return found, unusable


def _records_below(place: Path) -> list[Path]:
    """The records of a folder, but for those that an earlier command has set aside, which said so."""
    paths = sorted([*place.glob("ledger/*/record.json"), *place.glob("records/*/record.json")])
    return [path for path in paths if ".unusable-" not in path.parent.name]


def _require_this_version(path: Path, record: Record) -> None:
    odd = foreign_fields(record.recipe) if isinstance(record.recipe, dict) else {"recipe"}
    if odd:
        raise UnusableRecord(
            f"{path} was made by another version of dcvit: its recipe differs in {', '.join(sorted(odd))}. "
            "Make the run again, or read it with the version that its record names"
        )
    if id_of_data(record.recipe, record.seed) != record.run_id:
        raise UnusableRecord(
            f"{path} is not what it was: its recipe and seed are not those of run {record.run_id}"
        )


def setting_of(tables: Iterable[Table], filed: Sequence[Filed], *, place: Path) -> Setting:
    """Scale and images of records that lie in one folder; those of no table count for nothing.

    DataError if they are of several, naming two of them, or if none belongs to any table.
    """
    _require_one_data_set(filed, place)
    recipes = list(dict.fromkeys(cell.recipe for table in tables for cell in table.cells))
    candidates = dict.fromkeys(
        setting
        for scale in SCALES
        for one in _one_of_each_size(filed)
        for setting in of_record(scale, one.record)
    )
    matching = {setting: hits[0] for setting in candidates if (hits := belonging(recipes, setting, filed))}
    if not matching:
        raise DataError(f"{place} has {len(filed)} records, none of which belongs to a table of this version")
    if len(matching) > 1:
        (one, first), (other, second), *_ = matching.items()
        raise DataError(
            f"{place} has records of several scales or numbers of images: {first.folder} is of {_in_short(one)}, "
            f"{second.folder} of {_in_short(other)}. A table shows one: keep each in a folder of its own (--out)"
        )
    (setting,) = matching
    counts = [(one.record.data["train_images"], one.record.data["test_images"]) for one in filed]
    return replace(setting, counts=max(counts))  # fine-tuning may take fewer


def belonging(recipes: Iterable[Recipe], setting: Setting, filed: Sequence[Filed]) -> list[Filed]:
    """The records of runs that stand for these recipes of paper scale in a setting, and of runs those start from."""
    twins = {run.recipe for run in all_runs(setting.twins(recipes).values(), (0,))}
    names = {run_id(twin, seed) for twin in twins for seed in {one.record.seed for one in filed}}
    return [one for one in filed if one.record.run_id in names]


def _in_short(setting: Setting) -> str:
    asked = [
        f"{count:,} {what} images"
        for count, what in ((setting.train_images, "training"), (setting.test_images, "test"))
        if count is not None
    ]
    return " with ".join([f"scale {setting.scale}", *(["only " + ", ".join(asked)] if asked else [])])


def _one_of_each_size(filed: Sequence[Filed]) -> list[Filed]:
    """One record for each number of images that recipes name."""
    sizes: dict[tuple[int | None, int | None], Filed] = {}
    for one in filed:
        sizes.setdefault((one.record.recipe["train_images"], one.record.recipe["test_images"]), one)
    return list(sizes.values())


def _require_one_data_set(filed: Sequence[Filed], place: Path) -> None:
    by_images: dict[str, Filed] = {}
    for one in filed:
        by_images.setdefault(one.record.data["fingerprint"], one)
    if len(by_images) > 1:
        first, second, *_ = by_images.values()
        raise DataError(
            f"{place} has records of {len(by_images)} data sets: {first.folder} was made from {_images(first)}, "
            f"{second.folder} from {_images(second)}. A table shows one: choose with --images FINGERPRINT"
        )


def _images(one: Filed) -> str:
    data = one.record.data
    return f"{data['name']} (fingerprint {data['fingerprint'][:12]}, {data['train_images']:,} images)"


def of_images(filed: Sequence[Filed], fingerprint: str | None) -> list[Filed]:
    """The records made from the images with this fingerprint, or its first digits; all for None.

    DataError if there is none.
    """
    if fingerprint is None:
        return list(filed)
    chosen = [one for one in filed if one.record.data["fingerprint"].startswith(fingerprint)]
    if not chosen:
        there = ", ".join(sorted({one.record.data["fingerprint"][:12] for one in filed}))
        raise DataError(f"no record was made from images with fingerprint {fingerprint!r}; there are {there}")
    return chosen


def results_of(table: Table, setting: Setting, filed: Sequence[Filed]) -> Results:
    """What the records say of a table."""
    twins = setting.twins(cell.recipe for cell in table.cells)
    behind = belonging(twins, setting, filed)
    seeds = tuple(sorted({one.record.seed for one in behind})) or tuple(range(DEFAULT_SEEDS[setting.scale]))
    return Results(
        scale=setting.scale,
        images=setting.in_words(),
        seeds=seeds,
        twins=twins,
        records={one.record.run_id: one.record for one in behind},
        patch_probes=patch_probes((one.folder, one.record) for one in behind),
    )


def patch_probes(runs: Iterable[tuple[Path, Record]]) -> dict[str, Mapping[str, float]]:
    """Run id -> the scores of its patch probe, for those that have one. UnusableRecord if one can't be trusted."""
    found = {record.run_id: patch_probe.read(folder, record) for folder, record in runs}
    return {name: patch_probe.metrics(probe) for name, probe in found.items() if probe is not None}


def find_run(name: str, *, places: Sequence[Path]) -> Filed:
    """A run by its folder, its record's path, or its id (or its first digits) in one of `places`.

    DataError if there is none or more than one; UnusableRecord if its record can't be trusted.
    """
    path = Path(name)
    if path.is_dir() or path.name == "record.json":
        folder = path if path.is_dir() else path.parent
        if not (folder / "record.json").exists():
            raise DataError(
                f"{folder} holds no record.json: name the folder of a finished run, OUT/ledger/RUN"
            )
        return _read_one(folder)
    if len(name) < SHORTEST_NAME:
        raise DataError(f"run {name!r}: give at least {SHORTEST_NAME} digits of its id, or its folder")
    hits = [
        path.parent for place in places for path in _records_below(place) if path.parent.name.startswith(name)
    ]
    if len(hits) != 1:
        where = ", ".join(map(str, places)) or "runs/"
        several = (
            f"{len(hits)} runs begin so: {', '.join(map(str, hits[:4]))}"
            if hits
            else f"there is none in {where}"
        )
        raise DataError(f"run {name!r}: {several}. Name the folder of the run")
    return _read_one(hits[0])


def _read_one(folder: Path) -> Filed:
    record = read(folder)
    _require_this_version(folder / "record.json", record)
    return Filed(folder, record)
