"""What `dcvit publish` lets into tables/, and that every page there is what its records render to."""

from dataclasses import replace
import json
import re

import pytest

from dcvit import ledger, patch_probe, setting
from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, RESNET_50, deit_at_384
from dcvit.errors import DataError
from dcvit.ledger import UnusableRecord
from dcvit.publishing import pages, publish, render_all
from dcvit.recipe import run_id
from reproductions.all_tables import TABLES
from reproductions.learning_process import TABLE as LEARNING
from reproductions.table2_topk_probe import TABLE as TABLE2
from reproductions.table3_manipulation import TABLE as TABLE3
from reproductions.table5_backbones import TABLE as TABLE5
from reproductions.table6_resnet50 import TABLE as TABLE6
from tests.helpers import ROOT, files_below, record_of
from tests.test_gather import made, own, probe_of, write

FEW = (TABLE3, TABLE6)
FINE_TUNED = deit_at_384(DEIT_B)
AT_384 = replace(TABLE5, cells=tuple(cell for cell in TABLE5.cells if cell.recipe == FINE_TUNED), claims=())
PROBED = [replace(TABLE2, cells=tuple(cell for cell in TABLE2.cells if cell.recipe == DEIT_B), claims=())]
PAGES = [f"{scale}/{table.name}.md" for scale in ("paper", "small") for table in FEW]
CLEAN = {**record_of(DEIT_T, 0, 0.0).environment, "commit": "c1ea" * 10, "dirty": False}


def clean(recipe, scale="small", seed=0, *, at=None, environment=None, **changes):
    """A record that may be published, but for the changes."""
    environment = {**CLEAN, **(environment or {})}
    return made(recipe, at or own(scale), seed, environment=environment, **changes)


def there(into):
    return {path: path.read_text(encoding="utf-8") for path in into.rglob("*.md")}


# --- what is copied ------------------------------------------------------------------------


def test_clean_records_are_copied_without_their_weights_to_their_scale_and_shown(tmp_path):
    small, paper = clean(DEIT_T, top1=61.25), clean(RESNET_50, "paper", top1=78.25)
    runs, into = tmp_path / "runs", tmp_path / "tables"
    (first,), (second,) = write(runs / "small", small), write(runs / "paper", paper)
    (first / "last.safetensors").write_bytes(b"weights")
    copied, refused = publish(FEW, [runs / "small", runs / "paper"], into)
    targets = [into / "small" / "records" / first.name, into / "paper" / "records" / second.name]
    assert (copied, refused) == (targets, {})
    assert ledger.read(targets[0]) == small
    records = [f"{target.relative_to(into)}/record.json" for target in targets]
    assert files_below(into) == sorted([*PAGES, *records])
    text = {path.relative_to(into).as_posix(): page for path, page in there(into).items()}
    assert "61.25 (72.2)" in text["small/table3.md"]
    assert "78.25 (78.5)" in text["paper/table6.md"]
    assert "61.25" not in text["paper/table3.md"]


def test_the_patch_probe_of_a_run_is_copied_too_also_later(tmp_path):
    record = clean(DEIT_B, weights={"best.safetensors": "5" * 64})
    (folder,) = write(tmp_path / "runs", record)
    (target,), refused = publish(PROBED, [tmp_path / "runs"], tmp_path / "tables")
    assert refused == {}
    patch_probe.write(folder, probe_of(record))
    assert publish(PROBED, [tmp_path / "runs"], tmp_path / "tables") == ([target], {})
    assert files_below(target) == ["patch_probe.json", "record.json"]
    (both,), _ = publish(PROBED, [tmp_path / "runs"], tmp_path / "elsewhere")
    assert files_below(both) == ["patch_probe.json", "record.json"]
    assert (target / "patch_probe.json").read_bytes() == (folder / "patch_probe.json").read_bytes()
    assert "0.500" in (tmp_path / "tables" / "small" / "table2.md").read_text()


def test_copying_twice_changes_nothing(tmp_path):
    write(tmp_path / "runs", clean(DEIT_T), clean(DEIT_S))
    copied, _ = publish(FEW, [tmp_path / "runs"], tmp_path / "tables")
    assert len(copied) == 2
    before = {name: (tmp_path / "tables" / name).read_bytes() for name in files_below(tmp_path / "tables")}
    assert publish(FEW, [tmp_path / "runs"], tmp_path / "tables") == ([], {})
    after = {name: (tmp_path / "tables" / name).read_bytes() for name in files_below(tmp_path / "tables")}
    assert after == before


def test_records_of_other_seeds_join_those_that_are_there(tmp_path):
    into = tmp_path / "tables"
    for seed in (0, 1):
        write(tmp_path / f"runs{seed}", clean(DEIT_T, seed=seed, top1=60.0 + seed))
        publish(FEW, [tmp_path / f"runs{seed}"], into)
    assert "60.50 ± 0.71 (72.2)" in (into / "small" / "table3.md").read_text()
    assert pages(FEW, into) == there(into)


# --- what is refused -----------------------------------------------------------------------


def _folder_images(scale):
    return replace(own(scale), images="folder", classes=3)


REFUSED = [
    pytest.param(
        clean(DEIT_T, environment={"dirty": True}),
        "changed tree .commit c1eac1eac1ea with changes",
        id="dirty",
    ),
    pytest.param(
        clean(DEIT_T, environment={"commit": None, "dirty": None}),
        "not made from a git checkout",
        id="no commit",
    ),
    pytest.param(clean(DEIT_T, "smoke"), "is of scale smoke, which says nothing about the paper", id="smoke"),
    pytest.param(
        clean(FINE_TUNED, "smoke"),
        "is of scale smoke, which says nothing about the paper",
        id="smoke, 384",
    ),
    pytest.param(
        clean(DEIT_T, at=_folder_images("small")),
        r"was trained on other images \(folder\) than scale small is about",
        id="other images",
    ),
    pytest.param(
        clean(replace(DEIT_T, label_smoothing=0.2)),
        "belongs to no cell of a table of this version",
        id="no cell",
    ),
]


@pytest.mark.parametrize(("record", "why"), REFUSED)
def test_what_may_not_be_published_is_refused_with_its_reason_and_the_rest_is_copied(tmp_path, record, why):
    good = clean(DEIT_S)
    good_folder, bad_folder = *write(tmp_path / "runs", good), *write(tmp_path / "others", record)
    copied, refused = publish((*FEW, AT_384), [tmp_path / "others", tmp_path / "runs"], tmp_path / "tables")
    assert [folder.name for folder in copied] == [good_folder.name]
    assert list(refused) == [bad_folder]
    assert re.search(why, refused[bad_folder])
    assert not list((tmp_path / "tables").rglob(bad_folder.name))


@pytest.mark.parametrize("asked", [{"train_images": 600}, {"test_images": 99}], ids=str)
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_a_run_on_some_of_the_images_is_not_what_the_scale_is_about(tmp_path, scale, asked):
    (folder,) = write(tmp_path / "runs", clean(DEIT_T, at=replace(own(scale), **asked)))
    copied, refused = publish(FEW, [tmp_path / "runs"], tmp_path / "tables")
    assert copied == []
    assert list(refused) == [folder]


@pytest.mark.parametrize("damage", ["cut off", "other version"])
def test_a_damaged_record_and_one_of_another_version_are_refused(tmp_path, damage):
    good, bad = write(tmp_path / "runs", clean(DEIT_S), clean(DEIT_T))
    path = bad / "record.json"
    if damage == "cut off":
        path.write_text(path.read_text()[:-9])
    else:
        facts = json.loads(path.read_text())
        del facts["recipe"]["difficulty_probe"]
        path.write_text(json.dumps(facts))
    copied, refused = publish(FEW, [tmp_path / "runs"], tmp_path / "tables")
    assert [folder.name for folder in copied] == [good.name]
    assert list(refused) == [bad]
    assert {"cut off": "cut off or damaged", "other version": "another version"}[damage] in refused[bad]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_records_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    copied, refused = publish(FEW, [tmp_path / name], tmp_path / "tables")
    assert copied == []
    assert list(refused) == [tmp_path / name]
    assert refused[tmp_path / name].startswith("holds no record")


def test_another_record_of_a_published_run_is_refused_and_both_are_named(tmp_path):
    write(tmp_path / "runs", clean(DEIT_T, top1=60.0))
    (target,), _ = publish(FEW, [tmp_path / "runs"], tmp_path / "tables")
    (again,) = write(tmp_path / "again", clean(DEIT_T, top1=61.0))
    before = there(tmp_path / "tables")
    with pytest.raises(DataError, match="made twice") as caught:
        publish(FEW, [tmp_path / "again"], tmp_path / "tables")
    assert str(target / "record.json") in str(caught.value)
    assert str(again / "record.json") in str(caught.value)
    assert ledger.read(target).last["top1"] == 60.0
    assert there(tmp_path / "tables") == before


# --- nothing that publishing does leaves tables/ unusable ----------------------------------


def still_whole(into, before):
    """The pages are what the records render to, and as they were."""
    assert pages(FEW, into) == there(into) == before


def published(tmp_path):
    write(tmp_path / "runs", clean(DEIT_T))
    publish(FEW, [tmp_path / "runs"], tmp_path / "tables")
    return there(tmp_path / "tables")


def reasons(tmp_path, tables=FEW):
    """Why nothing of what is in more/ is published."""
    copied, refused = publish(tables, [tmp_path / "more"], tmp_path / "tables")
    assert copied == []
    return list(refused.values())


def test_a_second_data_set_is_refused_before_anything_is_copied(tmp_path):
    before = published(tmp_path)
    write(tmp_path / "more", clean(DEIT_S, fingerprint="99" * 32))
    (reason,) = reasons(tmp_path)
    assert (
        "another data set (fingerprint 999999999999) than what is published already (e2e2e2e2e2e2)" in reason
    )
    still_whole(tmp_path / "tables", before)


def test_of_two_new_data_sets_the_first_is_published(tmp_path):
    first, second = write(
        tmp_path / "runs", *(clean(DEIT_T, seed=seed, fingerprint=f"{seed}1" * 32) for seed in (0, 1))
    )
    first, second = sorted((first, second))
    copied, refused = publish(FEW, [tmp_path / "runs"], tmp_path / "tables")
    assert [folder.name for folder in copied] == [first.name]
    assert list(refused) == [second]
    assert "another data set" in refused[second]


def test_a_second_run_of_a_published_one_keeps_the_others_from_being_copied(tmp_path):
    before = published(tmp_path)
    write(tmp_path / "more", clean(DEIT_T, top1=1.0), *(clean(DEIT_S, seed=seed) for seed in range(3)))
    with pytest.raises(DataError, match="made twice"):
        publish(FEW, [tmp_path / "more"], tmp_path / "tables")
    still_whole(tmp_path / "tables", before)


def test_two_runs_of_one_among_the_new_ones_are_refused_and_none_is_chosen(tmp_path):
    before = published(tmp_path)
    folders = [
        *write(tmp_path / "one", clean(DEIT_S, top1=1.0)),
        *write(tmp_path / "two", clean(DEIT_S, top1=2.0)),
    ]
    with pytest.raises(DataError, match="made twice") as caught:
        publish(FEW, [tmp_path / "one", tmp_path / "two"], tmp_path / "tables")
    assert all(str(folder) in str(caught.value) for folder in folders)
    still_whole(tmp_path / "tables", before)


def test_a_probe_that_can_not_be_trusted_is_refused_before_anything_is_copied(tmp_path):
    before = published(tmp_path)
    record = clean(DEIT_S, weights={"best.safetensors": "5" * 64})
    (folder,) = write(tmp_path / "more", record)
    patch_probe.write(folder, replace(probe_of(record), weights="6" * 64))
    (reason,) = reasons(tmp_path)
    assert "other weights" in reason
    still_whole(tmp_path / "tables", before)


def test_a_probe_from_a_changed_tree_is_refused(tmp_path):
    record = clean(DEIT_B, weights={"best.safetensors": "5" * 64})
    (folder,) = write(tmp_path / "more", record)
    patch_probe.write(folder, replace(probe_of(record), environment={**CLEAN, "dirty": True}))
    assert reasons(tmp_path, PROBED) == [
        "its patch probe was made from a changed tree (commit c1eac1eac1ea with changes)"
    ]


# --- the pages -----------------------------------------------------------------------------


def test_without_records_the_pages_show_the_papers_numbers_and_not_run(tmp_path):
    tables = (TABLE3, TABLE6, LEARNING)
    assert publish(tables, [], tmp_path) == ([], {})
    assert files_below(tmp_path) == [
        f"{scale}/{name}.md" for scale in ("paper", "small") for name in ("learning", "table3", "table6")
    ]
    for path, page in there(tmp_path).items():
        assert f"Scale {path.parent.name}, " in page
        assert "No run has finished." in page
        assert "**not run**" in page  # every claim
        for word in ("holds**", "contradicted**", "undecided**", "**reproduced", "**below", "**smoke"):
            assert word not in page
    for number in ("not run (72.2)", "not run (82.3)"):
        assert number in (tmp_path / "paper" / "table3.md").read_text()


def test_pages_without_records_name_the_images_that_a_run_would_have(tmp_path):
    publish(FEW, [], tmp_path)
    assert "Imagenette, 160 px. No run" in (tmp_path / "small" / "table3.md").read_text()
    assert "(1,281,167 training, 50,000 test). No run" in (tmp_path / "paper" / "table3.md").read_text()


def test_pages_are_what_was_written_and_a_number_edited_by_hand_is_noticed(tmp_path):
    write(tmp_path / "runs", clean(DEIT_T, top1=60.0))
    into = tmp_path / "tables"
    publish(FEW, [tmp_path / "runs"], into)
    assert pages(FEW, into) == there(into)
    page = into / "small" / "table3.md"
    page.write_text(page.read_text().replace("60.00 (72.2)", "72.20 (72.2)"))
    assert pages(FEW, into) != there(into)
    render_all(FEW, into)
    assert pages(FEW, into) == there(into)


def test_a_number_edited_in_a_record_changes_its_page(tmp_path):
    write(tmp_path / "runs", clean(DEIT_T, top1=60.0))
    into = tmp_path / "tables"
    (target,), _ = publish(FEW, [tmp_path / "runs"], into)
    ledger.write(target, replace(ledger.read(target), last={"top1": 72.2, "top5": 95.0}))
    assert pages(FEW, into) != there(into)


def test_a_record_under_another_scale_is_refused(tmp_path):
    write(tmp_path / "paper", clean(DEIT_T, "small"), inside="records")
    with pytest.raises(DataError, match=r"is of scale small and lies under .*paper"):
        pages(FEW, tmp_path)


def test_a_stranger_among_published_records_is_refused(tmp_path):
    stranger = clean(replace(DEIT_T, label_smoothing=0.2))
    *_, folder = write(tmp_path / "small", clean(DEIT_T), stranger, inside="records")
    with pytest.raises(DataError, match=rf"{folder} belongs to no cell of a table at scale small"):
        pages(FEW, tmp_path)


def test_a_damaged_record_among_published_ones_is_refused(tmp_path):
    (folder,) = write(tmp_path / "small", clean(DEIT_T), inside="records")
    (folder / "record.json").write_text("{")
    with pytest.raises(UnusableRecord, match="cut off or damaged"):
        pages(FEW, tmp_path)


def test_the_run_before_a_fine_tuning_belongs_to_it(tmp_path):
    """Though no cell of these tables shows it."""
    write(tmp_path / "small", clean(FINE_TUNED), clean(DEIT_B), inside="records")
    assert pages([AT_384], tmp_path).keys() == {
        tmp_path / scale / "table5.md" for scale in ("small", "paper")
    }
    (target,) = (tmp_path / "small" / "records").glob(f"{run_id(own('small').twin(DEIT_B), 0)}-*")
    assert target.is_dir()


# --- this repository's own -----------------------------------------------------------------


def test_every_page_in_tables_equals_what_its_records_render_to():
    into = ROOT / "tables"
    found = {
        path: path.read_text(encoding="utf-8")
        for scale in ("small", "paper")
        for path in (into / scale).rglob("*.md")
    }
    rendered = pages(TABLES, into)
    names = {path: path.relative_to(ROOT).as_posix() for path in (*found, *rendered)}
    assert sorted(map(names.get, found)) == sorted(map(names.get, rendered)), "make them with: dcvit publish"
    wrong = [names[path] for path in rendered if found[path] != rendered[path]]
    assert wrong == [], "numbers come from records, never from a keyboard: dcvit publish renders them anew"


def test_every_published_record_was_made_from_a_clean_tree():
    for path in (ROOT / "tables").glob("*/records/*/record.json"):
        record = ledger.read(path.parent)
        assert record.environment["commit"], path
        assert record.environment["dirty"] is False, path
        assert record.data["name"] == setting.OWN_IMAGES[path.parts[-4]][0], path
