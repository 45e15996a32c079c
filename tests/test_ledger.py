"""Records come back as they were written, or say why they can't be used."""

from dataclasses import replace
import json
import math

import pytest

from dcvit import ledger
from dcvit.files import sha256_of
from dcvit.ledger import LAYOUT, Record, UnusableRecord
from dcvit.recipe import DynamicAlpha, PatchErasing, as_data, run_id
from tests.helpers import files_below, tiny

FINGERPRINT = "0123456789abcdef" * 4
RECIPE = tiny(pretrained=tiny(), alpha=DynamicAlpha(), exploration_erasing=PatchErasing(patch_size=4))


@pytest.fixture
def folder(tmp_path):
    """The folder of a finished run of RECIPE with seed 0, below tmp_path."""
    folder = ledger.folder_of(tmp_path, RECIPE, 0, FINGERPRINT)
    folder.mkdir(parents=True)
    (folder / "last.safetensors").write_bytes(b"the last weights")
    (folder / "best.safetensors").write_bytes(b"the best weights")
    ledger.write(folder, record_in(folder))
    return folder


def record_in(folder):
    return Record(
        layout=LAYOUT,
        run_id=run_id(RECIPE, 0),
        recipe=as_data(RECIPE),
        seed=0,
        data={
            "name": "folder",
            "fingerprint": FINGERPRINT,
            "classes": 3,
            "train_images": 12,
            "test_images": 4,
        },
        environment={
            "versions": {"torch": "2.9", "timm": "1.0"},
            "commit": None,
            "dirty": None,
            "device": "cpu",
            "device_name": "a processor",
            "precision": "float32",
        },
        parameters=10,
        samples_seen=24,
        last={"top1": 100 / 3, "top5": 100.0},
        best={"top1": 200 / 3, "top5": 100.0, "epoch": 1},
        correct="f0",
        evolution=[
            {
                "epoch": 1,
                "loss": 0.1 + 0.2,
                "histogram": [1, 2],
                "easy": 0.1,
                "hard": 0.2,
                "alpha": 0.8,
                "top1": 50.0,
                "seconds": 1.0,
            }
        ],
        weights={name: sha256_of(folder / name) for name in ("last.safetensors", "best.safetensors")},
        started="2024-01-01T00:00:00+00:00",
        seconds=1.5,
    )


def find(out):
    return ledger.find(out, RECIPE, 0, FINGERPRINT)


def changed(folder, **values):
    """Writes the record again, with other values."""
    facts = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**facts, **values}))


def test_a_record_comes_back_as_it_was_written(folder, tmp_path):
    assert find(tmp_path) == ledger.read(folder) == record_in(folder)


def test_a_run_without_a_record_is_not_found(tmp_path):
    assert find(tmp_path) is None


def test_weights_without_a_record_are_no_finished_run(folder, tmp_path):
    (folder / "record.json").unlink()
    assert find(tmp_path) is None


@pytest.mark.parametrize(
    ("recipe", "seed", "fingerprint"),
    [(tiny(), 0, FINGERPRINT), (RECIPE, 1, FINGERPRINT), (RECIPE, 0, "f" * 64)],
    ids=["recipe", "seed", "images"],
)
def test_a_record_answers_only_for_its_recipe_seed_and_images(folder, tmp_path, recipe, seed, fingerprint):
    assert ledger.find(tmp_path, recipe, seed, fingerprint) is None


def test_a_number_that_is_not_finite_is_never_written(folder):
    record = replace(record_in(folder), last={"top1": math.nan})
    before = files_below(folder)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.write(folder, record)
    assert ledger.read(folder) == record_in(folder)
    assert files_below(folder) == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_record_that_is_cut_off_is_named(folder, tmp_path, share):
    path = folder / "record.json"
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UnusableRecord, match=rf"^{path} is cut off or damaged"):
        find(tmp_path)


def test_a_record_of_random_bytes_is_named(folder, tmp_path):
    (folder / "record.json").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UnusableRecord, match=rf"^{folder / 'record.json'} is cut off or damaged"):
        find(tmp_path)


@pytest.mark.parametrize("layout", [LAYOUT - 1, LAYOUT + 1, None])
def test_a_record_of_another_layout_is_named_with_both_layouts(folder, tmp_path, layout):
    changed(folder, layout=layout)
    message = rf"record.json has layout {layout}; this version writes and reads layout {LAYOUT}"
    with pytest.raises(UnusableRecord, match=message):
        find(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}"])
def test_json_that_is_no_record_is_named(folder, tmp_path, content):
    (folder / "record.json").write_text(content)
    with pytest.raises(UnusableRecord, match=r"record.json has layout None"):
        find(tmp_path)


def test_a_record_with_a_field_too_many_says_which(folder, tmp_path):
    changed(folder, colour="red")
    with pytest.raises(UnusableRecord, match=r"record.json lacks fields or has too many: colour"):
        find(tmp_path)


def test_a_record_that_lacks_a_field_says_which(folder, tmp_path):
    facts = json.loads((folder / "record.json").read_text())
    del facts["correct"]
    (folder / "record.json").write_text(json.dumps(facts))
    with pytest.raises(UnusableRecord, match=r"record.json lacks fields or has too many: correct"):
        find(tmp_path)


@pytest.mark.parametrize("values", [{"recipe": as_data(tiny())}, {"seed": 1}], ids=["recipe", "seed"])
def test_a_record_of_another_run_in_this_ones_place_is_not_used(folder, tmp_path, values):
    changed(folder, **values)
    with pytest.raises(UnusableRecord, match=r"record.json is the record of another recipe or seed"):
        find(tmp_path)


def test_a_record_of_other_images_with_a_like_fingerprint_is_not_used(folder, tmp_path):
    other = FINGERPRINT[:8] + "f" * 56
    with pytest.raises(UnusableRecord, match=r"record.json was made from other images"):
        ledger.find(tmp_path, RECIPE, 0, other)


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors"])
def test_missing_weights_are_named(folder, tmp_path, name):
    (folder / name).unlink()
    with pytest.raises(UnusableRecord, match=rf"^{folder / name} is missing"):
        find(tmp_path)


def test_sound_weights_are_handed_out(folder, tmp_path):
    path = ledger.checked_weights(tmp_path, RECIPE, 0, FINGERPRINT)
    assert path.read_bytes() == b"the last weights"


def test_damaged_weights_are_named(folder, tmp_path):
    (folder / "last.safetensors").write_bytes(b"the lost weights")
    with pytest.raises(UnusableRecord, match=rf"^{folder / 'last.safetensors'} is damaged"):
        ledger.checked_weights(tmp_path, RECIPE, 0, FINGERPRINT)


def test_what_is_moved_aside_is_not_lost(folder, tmp_path):
    before = {name: (folder / name).read_bytes() for name in files_below(folder)}
    aside = ledger.move_aside(folder)
    assert {name: (aside / name).read_bytes() for name in files_below(aside)} == before
    assert find(tmp_path) is None
    assert not folder.exists()


def test_moving_aside_never_overwrites_an_earlier_copy(folder):
    copies = []
    for number in range(3):
        folder.mkdir(exist_ok=True)
        (folder / "number").write_text(str(number))
        copies.append(ledger.move_aside(folder))
    assert [(copy / "number").read_text() for copy in copies] == ["0", "1", "2"]
