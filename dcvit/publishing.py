"""What goes into `tables/`: records of scale small or paper from a clean tree, and their pages. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
import shutil

from dcvit import patch_probe
from dcvit.errors import DataError
from dcvit.files import write_text
from dcvit.gather import Filed, belonging, read_all, results_of, setting_of
from dcvit.ledger import UnusableRecord
from dcvit.pages import render
from dcvit.scale import Scale
from dcvit.setting import OWN_IMAGES, Setting, of_nothing
from dcvit.tables import Table

PUBLISHED: tuple[Scale, ...] = ("small", "paper")
FILES = ("record.json", "patch_probe.json")  # weights stay where they are


def publish(
    tables: Sequence[Table], places: Sequence[Path], into: Path
) -> tuple[list[Path], dict[Path, str]]:
    """Copies what may be published from `places` and renders all pages anew.

    Returns the folders of the new records, and for every record that was refused the reason. DataError if
    `into` holds a record of the same run that says something else; then nothing is copied.
    """
    chosen: list[tuple[Filed, Path]] = []
    refused: dict[Path, str] = {}
    images = {scale: _published_images(into / scale) for scale in PUBLISHED}
    for place in places:
        filed, unusable = read_all(place)
        refused |= {path.parent: why for path, why in unusable.items()}
        if not filed and not unusable:
            refused[place] = "holds no record: name a folder that a table's command wrote (--out)"
        for one in filed:
            scale = _scale_of(tables, one, place)
            if why_not := _why_not_clean(one) or _why_not_of_scale(one, scale, images):
                refused[one.folder] = why_not
            elif scale is not None:
                images[scale] = one.record.data["fingerprint"]
                chosen.append((one, into / scale / "records" / one.folder.name))
    new: dict[Path, Path] = {}  # target -> source
    for one, folder in chosen:
        for source, target in _files(one, folder):
            _require_same(source, new.setdefault(target, source))
    for target, source in new.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    render_all(tables, into)
    return list(dict.fromkeys(target.parent for target in new)), refused


def _published_images(place: Path) -> str | None:
    """The fingerprint of the images behind what is published at a scale; None where nothing is."""
    filed, _ = read_all(place)
    return filed[0].record.data["fingerprint"] if filed else None


def _scale_of(tables: Sequence[Table], one: Filed, place: Path) -> Scale | None:
    """The scale whose tables show the record, if any does."""
    try:
        return setting_of(tables, [one], place=place).scale
    except DataError:
        return None


def _why_not_clean(one: Filed) -> str:
    """What keeps a record from being published, whatever its scale; "" if nothing does."""
    try:
        probe = patch_probe.read(one.folder, one.record)
    except UnusableRecord as error:
        return f"has a patch probe that can't be trusted: {error}"
    for what, environment in (
        ("", one.record.environment),
        ("its patch probe ", probe and probe.environment),
    ):
        if environment and environment["commit"] is None:
            return f"{what}was not made from a git checkout: its code can't be named"
        if environment and environment["dirty"]:
            return f"{what}was made from a changed tree (commit {environment['commit'][:12]} with changes)"
    return ""


def _why_not_of_scale(one: Filed, scale: Scale | None, images: Mapping[Scale, str | None]) -> str:
    """What keeps a record from being published at its scale; "" if nothing does."""
    data = one.record.data
    if scale is None:
        return "belongs to no cell of a table of this version"
    if scale not in PUBLISHED:
        return f"is of scale {scale}, which says nothing about the paper"
    if data["name"] != OWN_IMAGES[scale][0]:
        return f"was trained on other images ({data['name']}) than scale {scale} is about"
    if any(one.record.recipe[name] is not None for name in ("train_images", "test_images")):
        return "was trained or tested on some of the images only (--train-images, --test-images)"
    if images[scale] not in (None, data["fingerprint"]):
        return (
            f"was made from another data set (fingerprint {data['fingerprint'][:12]}) than what is published "
            f"already ({str(images[scale])[:12]})"
        )
    return ""


def _files(one: Filed, folder: Path) -> list[tuple[Path, Path]]:
    """What of a run is to be copied where; nothing that is there already. DataError if something else is."""
    files = [(one.folder / name, folder / name) for name in FILES if (one.folder / name).exists()]
    for source, target in files:
        if target.exists():
            _require_same(source, target)
    return [(source, target) for source, target in files if not target.exists()]


def _require_same(one: Path, other: Path) -> None:
    if one.read_bytes() != other.read_bytes():
        raise DataError(
            f"{other} and {one} are the same run, made twice, and say different things. Decide which one counts "
            "and remove the other by hand"
        )


def render_all(tables: Sequence[Table], into: Path) -> None:
    """Writes the pages of all published records, and of nothing where there are none."""
    for path, text in pages(tables, into).items():
        write_text(path, text)


def pages(tables: Sequence[Table], into: Path) -> dict[Path, str]:
    """What every page of `into` must be, from the records there.

    DataError or UnusableRecord if one can't be used.
    """
    rendered = {}
    for scale in PUBLISHED:
        filed, unusable = read_all(into / scale)
        if unusable:
            raise UnusableRecord("; ".join(unusable.values()))
        setting = published_setting(tables, filed, scale, into / scale)
        for one in filed:
            images = {scale: filed[0].record.data["fingerprint"]}
            if why_not := _why_not_clean(one) or _why_not_of_scale(one, scale, images):
                raise DataError(f"{one.folder} does not belong in {into}: it {why_not}")
        for table in tables:
            rendered[into / scale / f"{table.name}.md"] = render(table, results_of(table, setting, filed))
    return rendered


def published_setting(tables: Iterable[Table], filed: Sequence[Filed], scale: Scale, place: Path) -> Setting:
    """Scale and images of what is published at a scale. DataError if a record of another scale lies there."""
    if not filed:
        return of_nothing(scale)
    setting = setting_of(tables, filed, place=place)
    if setting.scale != scale:
        raise DataError(f"{filed[0].folder} is of scale {setting.scale} and lies under {place}")
    recipes = [cell.recipe for table in tables for cell in table.cells]
    known = belonging(recipes, setting, filed)
    if strangers := {one.folder for one in filed} - {one.folder for one in known}:
        raise DataError(f"{min(strangers)} belongs to no cell of a table at scale {scale}")
    return setting
