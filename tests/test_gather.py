"""Records that lie in a folder: which of them are used, to what setting they belong, and what tables they make."""

from dataclasses import replace
import json
import re

import pytest

from dcvit import ledger, patch_probe
from dcvit.baselines import DEIT_B, DEIT_S, DEIT_T, OUR_SWIN_T, deit_at_384
from dcvit.errors import OK, DataError
from dcvit.facts import as_json
from dcvit.gather import find_run, of_images, read_all, results_of, setting_of
from dcvit.ledger import UnusableRecord
from dcvit.pages import render
from dcvit.patch_probe import PatchProbe
from dcvit.reproducing import reproduce
from dcvit.setting import DEFAULT_SEEDS, OWN_IMAGES, Setting
from dcvit.sources import DIGITS_TEST, DIGITS_TRAIN, IMAGENETTE_CLASSES, digits, from_folder
from reproductions.all_tables import TABLES
from reproductions.table2_topk_probe import TABLE as TABLE2
from reproductions.table3_manipulation import TABLE as TABLE3
from reproductions.table5_backbones import TABLE as TABLE5
from tests.helpers import image_folder, record_of

COUNTS = {"smoke": (DIGITS_TRAIN, DIGITS_TEST), "small": (9_469, 3_925), "paper": (1_281_167, 50_000)}
FINGERPRINTS = {"smoke": "d1" * 32, "small": "e2" * 32, "paper": "f3" * 32}
FINE_TUNED = deit_at_384(DEIT_B)
EPOCH = {
    "easy": 0.2,
    "hard": 0.3,
    "histogram": [1] * 100,
    "top1": 50.0,
    "top5": 95.0,
    "seconds": 2.0,
    "alpha": 0.8,
    "loss": 1.0,
}


def own(scale):
    """The setting of a scale's own images."""
    images, classes = OWN_IMAGES[scale]
    return Setting(scale=scale, images=images, classes=classes)


def made(recipe, setting, seed=0, *, fingerprint=None, counts=None, top1=50.0, **changes):
    """The record that a run of a recipe of paper scale would leave."""
    twin = setting.twin(recipe)
    train, test = counts or COUNTS[setting.scale]
    data = {
        "name": setting.images,
        "fingerprint": fingerprint or FINGERPRINTS[setting.scale],
        "classes": setting.classes,
        "train_images": twin.train_images or train,
        "test_images": twin.test_images or test,
    }
    values = dict(data=data, correct="ff" * -(-data["test_images"] // 8), evolution=[EPOCH] * 3)
    return record_of(twin, seed, top1, **{**values, **changes})


def write(place, *records, inside="ledger"):
    """Writes records as their runs would; gives back their folders."""
    folders = [place / inside / f"{record.run_id}-{record.data['fingerprint'][:8]}" for record in records]
    for folder, record in zip(folders, records, strict=True):
        ledger.write(folder, record)
    return folders


def edit(folder, **changes):
    """Changes fields of a record file; None takes one away."""
    path = folder / "record.json"
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


def read(place):
    filed, unusable = read_all(place)
    assert unusable == {}
    return filed


def recipes_of(*tables):
    return list(dict.fromkeys(cell.recipe for table in tables for cell in table.cells))


# --- reading -------------------------------------------------------------------------------


def test_all_records_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    records = [made(recipe, own("small"), seed) for recipe in (DEIT_T, DEIT_S) for seed in (0, 1)]
    folders = write(tmp_path, *records[:3]) + write(tmp_path, records[3], inside="records")
    (tmp_path / "ledger" / "no-run").mkdir()
    filed = read(tmp_path)
    assert [one.folder for one in filed] == sorted(folders)
    assert {one.folder: one.record for one in filed} == dict(zip(folders, records, strict=True))


def test_an_empty_or_missing_folder_has_no_records(tmp_path):
    assert read_all(tmp_path) == read_all(tmp_path / "missing") == ([], {})


def test_what_was_set_aside_is_passed_over(tmp_path):
    (folder,) = write(tmp_path, made(DEIT_T, own("small")))
    ledger.move_aside(folder)
    assert read_all(tmp_path) == ([], {})


def _cut(folder):
    path = folder / "record.json"
    path.write_bytes(path.read_bytes()[:-20])


def _other_recipe(change):
    def damage(folder):
        recipe = json.loads((folder / "record.json").read_text())["recipe"]
        change(recipe)
        edit(folder, recipe=recipe)

    return damage


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(_cut, r"cut off or damaged", id="cut off"),
        pytest.param(lambda folder: edit(folder, layout=99), r"has layout 99", id="other layout"),
        pytest.param(
            lambda folder: edit(folder, correct=None), r"lacks fields .*: correct", id="field missing"
        ),
        pytest.param(
            _other_recipe(lambda recipe: recipe.pop("difficulty_probe")),
            r"another version of dcvit: its recipe differs in difficulty_probe",
            id="field of the recipe unknown to an older version",
        ),
        pytest.param(
            _other_recipe(lambda recipe: recipe.update(momentum=0.9, nesterov=True)),
            r"another version of dcvit: its recipe differs in momentum, nesterov",
            id="fields of the recipe unknown to this version",
        ),
    ],
)
def test_what_can_not_be_used_is_named_with_its_reason_and_left_out(tmp_path, damage, why):
    good, bad = write(tmp_path, made(DEIT_T, own("small")), made(DEIT_S, own("small")))
    damage(bad)
    filed, unusable = read_all(tmp_path)
    assert [one.folder for one in filed] == [good]
    assert list(unusable) == [bad / "record.json"]
    (reason,) = unusable.values()
    assert str(bad / "record.json") in reason
    assert re.search(why, reason)


# --- the setting ---------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "seeds"), [("smoke", (3, 7)), ("small", (0,)), ("paper", (0,))])
def test_the_setting_of_all_runs_of_all_tables_is_that_of_the_scales_own_images(tmp_path, scale, seeds):
    write(tmp_path, *(made(recipe, own(scale), seed) for recipe in recipes_of(*TABLES) for seed in seeds))
    found = setting_of(TABLES, read(tmp_path), place=tmp_path)
    assert found == replace(own(scale), counts=COUNTS[scale])


ONE_OF_EACH = (DEIT_T, FINE_TUNED, OUR_SWIN_T)


@pytest.mark.parametrize("recipe", ONE_OF_EACH, ids=["DeiT-T", "DeiT-B-384", "our Swin-T"])
@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.parametrize(
    "asked",
    [{}, {"train_images": 600}, {"test_images": 99}, {"train_images": 384, "test_images": 8}],
    ids=str,
)
def test_one_record_is_enough_to_tell_scale_and_numbers_of_images(tmp_path, scale, recipe, asked):
    """Also for digits in fine-tuning, whose recipe names a number of images though nobody asked for one."""
    setting = replace(own(scale), **asked)
    write(tmp_path, made(recipe, setting))
    found = setting_of([TABLE5], read(tmp_path), place=tmp_path)
    assert found.scale == scale
    assert found.twins(recipes_of(TABLE5)) == setting.twins(recipes_of(TABLE5))


@pytest.mark.parametrize("asked", [{}, {"test_images": 99}], ids=str)
def test_the_order_of_records_does_not_matter(tmp_path, asked):
    """The fine-tuning on digits uses 384 of them, whichever record comes first."""
    setting = replace(own("smoke"), **asked)
    write(tmp_path, *(made(recipe, setting) for recipe in (DEIT_B, *ONE_OF_EACH)))
    filed = read(tmp_path)
    for first in range(len(filed)):
        found = setting_of([TABLE5], filed[first:] + filed[:first], place=tmp_path)
        assert found == replace(setting, counts=found.counts)
        train, test = asked.get("train_images", DIGITS_TRAIN), asked.get("test_images", DIGITS_TEST)
        assert found.in_words() == f"scikit-learn's handwritten digits ({train:,} training, {test:,} test)"


def test_a_folder_of_images_is_told_by_its_records(tmp_path):
    setting = Setting(scale="smoke", images="folder", classes=3, train_images=12, test_images=6)
    write(tmp_path, *(made(recipe, setting, counts=(40, 20)) for recipe in ONE_OF_EACH))
    found = setting_of(TABLES, read(tmp_path), place=tmp_path)
    assert found == replace(setting, counts=(12, 6))
    assert found.in_words() == "a folder of images (12 training, 6 test)"


def test_two_data_sets_in_one_folder_are_refused_and_named_with_the_way_out(tmp_path):
    setting = own("small")
    first, second = write(
        tmp_path,
        made(DEIT_T, setting, fingerprint="aa" * 32),
        made(DEIT_T, setting, fingerprint="bb" * 32, counts=(7, 3)),
    )
    with pytest.raises(DataError) as caught:
        setting_of(TABLES, read(tmp_path), place=tmp_path)
    message = str(caught.value)
    assert f"{tmp_path} has records of 2 data sets" in message
    assert f"{first} was made from imagenette (fingerprint {'aa' * 6}, 9,469 images)" in message
    assert f"{second} from imagenette (fingerprint {'bb' * 6}, 7 images)" in message
    assert "--images FINGERPRINT" in message


def test_one_of_several_data_sets_can_be_chosen_by_the_first_digits_of_its_fingerprint(tmp_path):
    setting = own("small")
    one, _ = write(
        tmp_path,
        made(DEIT_T, setting, fingerprint="ab" * 31 + "00"),
        made(DEIT_S, setting, fingerprint="ba" * 31 + "ab"),
    )
    filed = read(tmp_path)
    chosen = of_images(filed, "abab")
    assert [each.folder for each in chosen] == [one]
    assert setting_of(TABLES, chosen, place=tmp_path).scale == "small"
    assert of_images(filed, None) == filed
    with pytest.raises(DataError, match=r"fingerprint 'cc'; there are abababababab, babababababa"):
        of_images(filed, "cc")


def test_two_scales_in_one_folder_are_refused_and_named(tmp_path):
    """Digits at smoke and at small, say: one data set, two scales."""
    smoke, small = (
        made(DEIT_T, replace(own("smoke"), scale=scale), counts=COUNTS["smoke"])
        for scale in ("smoke", "small")
    )
    small = replace(small, data=smoke.data)
    first, second = write(tmp_path, smoke, small)
    with pytest.raises(DataError) as caught:
        setting_of(TABLES, read(tmp_path), place=tmp_path)
    message = str(caught.value)
    assert f"{tmp_path} has records of several scales" in message
    assert f"{first} is of scale smoke, {second} of scale small" in message
    assert "--out" in message


def test_records_none_of_which_belongs_to_a_table_are_refused(tmp_path):
    stranger = replace(DEIT_T, label_smoothing=0.2)
    write(tmp_path, made(stranger, own("small")))
    with pytest.raises(DataError, match="has 1 records, none of which belongs to a table of this version"):
        setting_of(TABLES, read(tmp_path), place=tmp_path)


# --- a table's results ---------------------------------------------------------------------


def test_foreign_records_beside_those_of_a_table_show_in_none_of_its_cells(tmp_path):
    stranger = made(replace(DEIT_T, label_smoothing=0.2), own("small"), top1=99.0)
    of_table_5 = made(FINE_TUNED, own("small"), top1=98.0)
    mine = made(DEIT_T, own("small"), top1=40.0)
    write(tmp_path, stranger, of_table_5, mine)
    filed = read(tmp_path)
    results = results_of(TABLE3, setting_of(TABLES, filed, place=tmp_path), filed)
    assert results.records == {mine.run_id: mine}
    shown = [value for cell in TABLE3.cells for value in results.values(cell)]
    assert shown == [40.0]


def test_seeds_are_those_that_were_run_and_the_scales_own_number_if_none_was(tmp_path):
    setting = own("small")
    assert results_of(TABLE3, setting, []).seeds == tuple(range(DEFAULT_SEEDS["small"]))
    write(tmp_path, *(made(DEIT_T, setting, seed) for seed in (9, 2)))
    results = results_of(TABLE3, setting, read(tmp_path))
    assert results.seeds == (2, 9)
    cell = next(cell for cell in TABLE3.cells if cell.recipe == DEIT_T)
    assert [record.seed for record in results.found(cell)] == [2, 9]


def probe_of(record):
    """A made-up probe of a run's best weights."""
    at = {k: {"p": 0.75 - k / 20, "top1": 80.0 - k} for k in patch_probe.KS}
    return PatchProbe(
        run_id=record.run_id,
        weights=record.weights["best.safetensors"],
        images=8,
        regions=16,
        seed=0,
        ks=patch_probe.KS,
        scores=dict.fromkeys(patch_probe.WAYS, at),
        environment=record.environment,
        seconds=1.0,
    )


def test_scores_of_the_patch_probe_come_with_their_run(tmp_path):
    weights = {"best.safetensors": "5" * 64}
    probed, other = (made(recipe, own("small"), weights=weights) for recipe in (DEIT_B, DEIT_S))
    folder, _ = write(tmp_path, probed, other)
    patch_probe.write(folder, probe_of(probed))
    results = results_of(TABLE2, own("small"), read(tmp_path))
    assert results.patch_probes == {probed.run_id: patch_probe.metrics(probe_of(probed))}
    shown = {cell.recipe: results.values(cell) for cell in TABLE2.cells if cell.metric == "attended/5/p"}
    assert (shown[DEIT_B], shown[DEIT_S]) == ([0.5], [])


def test_a_probe_of_other_weights_is_not_trusted(tmp_path):
    record = made(DEIT_B, own("small"), weights={"best.safetensors": "5" * 64})
    (folder,) = write(tmp_path, record)
    patch_probe.write(folder, replace(probe_of(record), weights="6" * 64))
    with pytest.raises(UnusableRecord, match="other weights"):
        results_of(TABLE2, own("small"), read(tmp_path))


def written_by_command(table, out, *argv):
    """Page and facts that a table's command writes about records that are all there."""
    assert reproduce(table, argv=["--out", str(out), *argv]) == OK
    return (out / f"{table.name}.md").read_text(), json.loads((out / f"{table.name}.json").read_text())


def from_records(table, out):
    """The same from the records alone."""
    filed = read(out)
    results = results_of(table, setting_of(TABLES, filed, place=out), filed)
    assert len(results.records) == len(recipes_of(table)) * len(results.seeds)
    return render(table, results), as_json(table, results)


@pytest.mark.parametrize("table", [TABLE3, TABLE5], ids=lambda table: table.name)
@pytest.mark.parametrize("asked", [{}, {"train_images": 600, "test_images": 99}], ids=str)
def test_a_table_on_digits_is_the_one_that_its_command_wrote(tmp_path, table, asked):
    setting, fingerprint = replace(own("smoke"), **asked), digits().fingerprint
    records = [
        made(recipe, setting, seed, fingerprint=fingerprint, top1=50.0 + seed)
        for recipe in recipes_of(table)
        for seed in (0, 1)
    ]
    write(tmp_path, *records)
    options = [f"--{name.replace('_', '-')}={number}" for name, number in asked.items()]
    written = written_by_command(table, tmp_path, "--seeds", "2", *options)
    assert from_records(table, tmp_path) == written


def test_a_table_at_small_is_the_one_that_its_command_wrote(tmp_path):
    source = from_folder(image_folder(tmp_path / "images", train=2, val=1, classes=IMAGENETTE_CLASSES))
    records = [
        made(recipe, own("small"), fingerprint=source.fingerprint, counts=(20, 10))
        for recipe in recipes_of(TABLE5)
    ]
    write(tmp_path / "out", *records)
    argv = ["--scale", "small", "--data", str(source.root), "--seeds", "1"]
    page, facts = written_by_command(TABLE5, tmp_path / "out", *argv)
    assert from_records(TABLE5, tmp_path / "out") == (page, facts)
    assert facts["images"] == "Imagenette, 160 px (20 training, 10 test)"


def test_all_that_records_do_not_tell_of_a_folder_of_images_is_its_name(tmp_path):
    source = from_folder(image_folder(tmp_path / "flowers", train=8, val=1))
    setting = Setting(scale="smoke", images="folder", classes=3)
    records = [
        made(recipe, setting, fingerprint=source.fingerprint, counts=(24, 3)) for recipe in recipes_of(TABLE3)
    ]
    write(tmp_path / "out", *records)
    page, _ = written_by_command(TABLE3, tmp_path / "out", "--data", str(source.root))
    assert from_records(TABLE3, tmp_path / "out")[0] == page.replace("folder flowers", "a folder of images")


# --- one run -------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """Two places with a run each."""
    places = [tmp_path / "runs" / name for name in ("smoke", "small")]
    records = [made(DEIT_T, own("smoke")), made(DEIT_S, own("small"))]
    (first,), (second,) = (write(place, record) for place, record in zip(places, records, strict=True))
    return places, first, second, records


@pytest.mark.parametrize("name", ["folder", "record", "id", "digits", "whole name"])
def test_a_run_is_found_by_its_folder_its_record_or_its_id(two, name):
    places, folder, _, (record, _) = two
    names = {
        "folder": folder,
        "record": folder / "record.json",
        "id": record.run_id,
        "digits": record.run_id[:4],
        "whole name": folder.name,
    }
    found = find_run(str(names[name]), places=places)
    assert (found.folder, found.record) == (folder, record)


def test_a_run_is_found_by_its_id_in_any_place_and_among_published_records(two, tmp_path):
    places, *_, second, (_, record) = two
    assert find_run(record.run_id, places=places).folder == second
    published = made(DEIT_B, own("small"))
    (folder,) = write(tmp_path / "tables" / "small", published, inside="records")
    assert find_run(published.run_id[:6], places=[*places, tmp_path / "tables" / "small"]).folder == folder


def test_a_folder_needs_no_place(two):
    _, folder, _, (record, _) = two
    assert find_run(str(folder), places=[]).record == record


def test_an_id_that_fits_two_runs_is_refused_and_both_are_named(two, tmp_path):
    places, folder, _, (record, _) = two
    (other,) = write(places[1], made(DEIT_T, own("smoke"), fingerprint="99" * 32))
    with pytest.raises(DataError, match="2 runs begin so: ") as caught:
        find_run(record.run_id, places=places)
    assert str(folder) in str(caught.value)
    assert str(other) in str(caught.value)
    assert find_run(folder.name, places=places).folder == folder


def test_an_id_that_fits_none_is_refused_and_the_places_are_named(two):
    places, *_, (record, _) = two
    with pytest.raises(DataError, match=r"run 'ffffffff': there is none in .*smoke, .*small"):
        find_run("ffffffff", places=places)
    with pytest.raises(DataError, match="there is none in"):
        find_run(record.run_id[2:], places=places)  # the first digits, not the last
    with pytest.raises(DataError, match=r"there is none in runs/"):
        find_run("ffffffff", places=[])


@pytest.mark.parametrize("name", ["a", "abc"])
def test_an_id_of_fewer_than_four_digits_is_refused(two, name):
    places, *_ = two
    with pytest.raises(DataError, match=rf"run '{name}': give at least 4 digits of its id, or its folder"):
        find_run(name, places=places)


@pytest.mark.parametrize("name", ["", "record.json"])
def test_a_folder_without_a_record_is_refused_with_what_to_name(two, tmp_path, name):
    places, *_ = two
    with pytest.raises(
        DataError, match=rf"{tmp_path} holds no record.json: name the folder of a finished run"
    ):
        find_run(str(tmp_path / name), places=places)


def test_a_path_that_is_not_there_is_refused_like_any_other_name(two, tmp_path):
    places, folder, *_ = two
    with pytest.raises(DataError, match="there is none in"):
        find_run(str(folder.with_name("0123456789ab")), places=places)


def test_a_run_that_was_set_aside_or_never_finished_is_not_found(two):
    places, folder, second, (record, other) = two
    ledger.move_aside(folder)
    (second / "record.json").unlink()
    for name in (record.run_id, other.run_id):
        with pytest.raises(DataError, match="there is none in"):
            find_run(name, places=places)


def test_a_damaged_record_is_not_read_as_a_run(two):
    places, folder, _, (record, _) = two
    _cut(folder)
    for name in (record.run_id, str(folder)):
        with pytest.raises(UnusableRecord, match="cut off or damaged"):
            find_run(name, places=places)


# --- what would vanish without a word ------------------------------------------------------


def test_two_numbers_of_images_in_one_folder_are_refused_and_named(tmp_path):
    whole, some = (
        made(DEIT_T, setting) for setting in (own("smoke"), replace(own("smoke"), train_images=600))
    )
    first, second = write(tmp_path, whole, replace(some, data=whole.data))
    with pytest.raises(DataError) as caught:
        setting_of(TABLES, read(tmp_path), place=tmp_path)
    assert f"{first} is of scale smoke, {second} of scale smoke with only 600 training images" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda recipe: {**recipe, "epochs": 7}, "is not what it was"),
        (lambda recipe: {**recipe, "augmentation": {"type": "Augmentation"}}, "flip"),
        (lambda recipe: {**recipe, "alpha": {"type": "WarmAlpha"}}, "WarmAlpha"),
        (lambda recipe: None, "differs in recipe"),
    ],
    ids=["edited", "a part of another version", "an unknown kind", "none"],
)
def test_a_record_whose_recipe_is_not_that_of_its_run_is_named_and_left_out(tmp_path, change, words):
    good, odd = made(DEIT_T, own("small")), made(DEIT_S, own("small"))
    folder, bad = write(tmp_path, good, odd)
    ledger.write(bad, replace(odd, recipe=change(odd.recipe)))
    filed, unusable = read_all(tmp_path)
    assert [one.folder for one in filed] == [folder]
    assert list(unusable) == [bad / "record.json"]
    assert words in unusable[bad / "record.json"]
