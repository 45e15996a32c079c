"""Which images a run gets, what names them, and whether each of them can be read."""

from io import BytesIO
import shutil
import tarfile

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from dcvit import sources
from dcvit.datasets import pictures
from dcvit.errors import DataError
from dcvit.sources import File, check_readable, from_folder, subset
from tests.helpers import CLASSES, image_folder, tiny


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DCVIT_DATA", raising=False)


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


# --- finding -------------------------------------------------------------------------------


def test_a_folder_is_read_as_an_image_folder(images):
    source = from_folder(images)
    assert (source.name, source.classes, source.root) == ("folder", CLASSES, images)
    assert (source.count("train"), source.count("val")) == (12, 6)
    assert [(file.path, file.label) for file in source.val] == [
        (f"val/{name}/{number}.png", label) for label, name in enumerate(CLASSES) for number in range(2)
    ]


def test_what_is_no_image_is_passed_over(images):
    before = from_folder(images)
    (images / "train" / "red" / "notes.txt").write_text("")
    (images / "train" / "README").write_text("")
    assert from_folder(images).fingerprint == before.fingerprint


def test_extensions_count_in_capitals_too(images):
    (images / "train" / "red" / "0.png").rename(images / "train" / "red" / "0.PNG")
    assert from_folder(images).count("train") == 12


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(images, tmp_path):
    shutil.copytree(images, tmp_path / "elsewhere")
    assert from_folder(tmp_path / "elsewhere").fingerprint == from_folder(images).fingerprint


@pytest.mark.parametrize("change", ["remove", "rename", "grow", "another split", "another class"])
def test_the_fingerprint_tells_changed_images(images, change):
    before = from_folder(images).fingerprint
    path = images / "train" / "red" / "0.png"
    match change:
        case "remove":
            path.unlink()
        case "rename":
            path.rename(path.with_name("00.png"))
        case "grow":
            path.write_bytes(path.read_bytes() + b" ")
        case "another split":
            path.rename(images / "val" / "red" / "9.png")
        case "another class":
            path.rename(images / "train" / "blue" / "9.png")
    assert from_folder(images).fingerprint != before


def test_smoke_takes_the_digits_whatever_dcvit_data_says(images, monkeypatch):
    monkeypatch.setenv("DCVIT_DATA", str(images))
    source = sources.find(None, "smoke")
    assert (source.name, source.count("train"), source.count("val")) == ("digits", 1438, 359)


def test_smoke_takes_a_folder_that_is_named(images):
    assert sources.find(str(images), "smoke").root == images


def test_small_takes_dcvit_data_unless_data_is_given(images, tmp_path, monkeypatch):
    other = image_folder(tmp_path / "other", train=2)
    monkeypatch.setenv("DCVIT_DATA", str(other))
    assert sources.find(None, "small").root == other
    assert sources.find(str(images), "small").root == images


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_a_folder_that_holds_imagenette_will_do(tmp_path, scale):
    inside = image_folder(tmp_path / "imagenette2-160", classes=sources.IMAGENETTE_CLASSES)
    source = sources.find(str(tmp_path), scale)
    assert (source.name, source.root) == ("imagenette", inside)


def test_imagenette_that_is_missing_is_asked_for_with_address_and_place(tmp_path):
    message = rf"fetch https://\S+imagenette2-160.tgz, unpack it so that {tmp_path}/imagenette2-160/train"
    with pytest.raises(DataError, match=message):
        sources.find(str(tmp_path), "small", download=False)


def test_paper_scale_without_data_says_what_it_reads():
    with pytest.raises(DataError, match=r"ImageNet-1k. Give --data FOLDER, or set DCVIT_DATA"):
        sources.find(None, "paper")


def test_paper_scale_wants_a_thousand_classes(images):
    with pytest.raises(DataError, match=r"has 3 classes: .* 1,000 .* use --scale smoke"):
        sources.find(str(images), "paper")


def test_the_digits_are_those_of_scikit_learn():
    recipe = tiny(classes=10, images="digits")
    splits = [pictures(sources.digits(), split, recipe) for split in ("train", "val")]
    assert [len(split) for split in splits] == [1438, 359]
    assert [split.labels.bincount().min().item() > 0 for split in splits] == [True, True]
    assert (
        np.asarray(splits[0].open(0)).max() == 255 * 15 // 16
    )  # its first digit's lightest grey is 15 of 16


# --- subsets -------------------------------------------------------------------------------

labels = st.lists(st.integers(0, 4), min_size=1, max_size=40)


@given(labels, st.data())
def test_a_subset_takes_the_classes_in_turn(labels, data):
    files = [File(f"{number:02}", label, 1) for number, label in enumerate(labels)]
    count = data.draw(st.integers(1, len(files)))
    taken = subset(files, count)
    assert len(taken) == count
    assert set(taken) <= set(files)
    taken_of = {label: sum(file.label == label for file in taken) for label in labels}
    most = max(taken_of.values())
    for label, number in taken_of.items():  # only a class that has no more may lag behind
        assert number >= min(most - 1, labels.count(label))


@given(labels, st.data())
def test_a_larger_subset_holds_the_smaller_one(labels, data):
    files = [File(f"{number:02}", label, 1) for number, label in enumerate(labels)]
    small, large = sorted(data.draw(st.tuples(*[st.integers(1, len(files))] * 2)))
    assert set(subset(files, small)) <= set(subset(files, large))


def test_no_count_takes_all_in_order(images):
    files = from_folder(images).train
    assert subset(files, None) == subset(files, len(files)) == files


@pytest.mark.parametrize("count", [0, -1, 13])
def test_more_than_there_is_can_not_be_had(images, count):
    with pytest.raises(DataError, match=rf"^{count} images asked for, 12 there are: ask for 1 to 12"):
        subset(from_folder(images).train, count)


# --- the check -----------------------------------------------------------------------------


def checked(root, monkeypatch):
    """Checks all images of a folder; how many were opened."""
    opened = []
    monkeypatch.setattr(sources, "_problem", lambda *image: opened.append(image))
    source = from_folder(root)
    check_readable(source, [*source.train, *source.val])
    return len(opened)


def test_what_was_checked_is_remembered_until_a_file_changes(images, monkeypatch):
    assert checked(images, monkeypatch) == 18
    assert checked(images, monkeypatch) == 0
    path = images / "val" / "red" / "0.png"
    Image.open(path).rotate(90).save(path)
    assert checked(images, monkeypatch) == 18


def test_a_broken_image_is_not_remembered_as_sound(images):
    path = images / "train" / "red" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    source = from_folder(images)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"1 of 18 images can't be read.*\n  {path}: "):
            check_readable(source, [*source.train, *source.val])


def test_a_home_that_can_not_be_written_costs_only_the_memory(images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [checked(images, monkeypatch), checked(images, monkeypatch)] == [18, 18]


def test_of_many_broken_images_ten_are_named(images):
    for path in images.rglob("*.png"):
        path.write_bytes(b"not an image")
    source = from_folder(images)
    with pytest.raises(DataError) as caught:
        check_readable(source, [*source.train, *source.val])
    first, *named, rest = str(caught.value).splitlines()
    assert first.startswith("18 of 18 images can't be read; replace or remove them")
    assert len(named) == 10
    assert rest == "  ... and 8 more"


def problem_of(path):
    """What a check finds wrong with one file."""
    return sources._problem(path.parent, File(path.name, 0, path.stat().st_size))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it can live with
@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "ppm", "tif", "webp"])
def test_every_kind_of_file_cut_off_anywhere_is_found(tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(whole)
    assert problem_of(whole) is None
    content, cut = whole.read_bytes(), tmp_path / f"cut.{kind}"
    for length in range(0, int(0.95 * len(content)), 7):
        cut.write_bytes(content[:length])
        problem = problem_of(cut)
        assert problem is None or problem.startswith(f"{cut}: ")
        assert problem is not None or kind == "tif"  # a tag at its end may be optional


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it can live with
@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "ppm", "tif", "webp"])
def test_damaged_files_of_every_kind_raise_nothing_else(tmp_path, kind):
    path = tmp_path / f"image.{kind}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 5):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        problem = problem_of(path)
        assert problem is None or problem.startswith(f"{path}: ")


# --- shards --------------------------------------------------------------------------------


def shards_of(images, folder):
    """The images of a folder as one WebDataset shard a split."""
    folder.mkdir()
    source = from_folder(images)
    for split, files in (("train", source.train), ("val", source.val)):
        with tarfile.open(folder / f"set-{split}-0000.tar", "w") as tar:
            for number, file in enumerate(files):
                tar.add(images / file.path, f"{number:04}.png")
                label = tarfile.TarInfo(f"{number:04}.cls")
                label.size = len(str(file.label))
                tar.addfile(label, BytesIO(str(file.label).encode()))
    return folder


def test_shards_hold_the_images_of_the_folder_they_were_made_from(images, tmp_path):
    folder, shards = from_folder(images), sources.from_shards(shards_of(images, tmp_path / "shards"))
    assert len(shards.classes) == 3
    check_readable(shards, [*shards.train, *shards.val])
    for split in ("train", "val"):
        expected, found = (pictures(source, split, tiny()) for source in (folder, shards))
        assert found.labels.tolist() == expected.labels.tolist()
        for index in range(len(expected)):
            assert found.open(index).tobytes() == expected.open(index).tobytes()


def test_a_folder_without_shards_says_what_it_must_hold(tmp_path):
    with pytest.raises(
        DataError, match=rf"^{tmp_path} has no \*train\*.tar: wds/FOLDER takes a folder of shards"
    ):
        sources.from_shards(tmp_path)


def test_a_sample_without_label_is_named(images, tmp_path):
    shards = shards_of(images, tmp_path / "shards")
    with tarfile.open(shards / "set-val-0000.tar", "a") as tar:
        tar.add(images / "val" / "red" / "0.png", "0099.png")
    with pytest.raises(DataError, match=r"set-val-0000.tar: sample '0099' lacks its image or its .cls"):
        sources.from_shards(shards)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_shard_that_is_cut_off_is_named(images, tmp_path, share):
    shards = shards_of(images, tmp_path / "shards")
    path = shards / "set-train-0000.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content)) - 100 if share else 0])
    with pytest.raises(DataError, match=rf"^{path}"):
        sources.from_shards(shards)


def test_a_broken_image_of_a_shard_is_named_with_its_place(images, tmp_path):
    (images / "train" / "red" / "0.png").write_text("not an image")
    source = sources.from_shards(shards_of(images, tmp_path / "shards"))
    with pytest.raises(
        DataError, match=r"1 of 12 images .*\n  \S+set-train-0000.tar at byte \d+: cannot identify"
    ):
        check_readable(source, source.train)


def test_a_shard_without_samples_is_named(images, tmp_path):
    shards = shards_of(images, tmp_path / "shards")
    for path in shards.iterdir():
        tarfile.open(path, "w").close()
    with pytest.raises(DataError, match=r"set-\w+-0000.tar"):
        sources.from_shards(shards)
