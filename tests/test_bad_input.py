"""What a user may get wrong: one clear message, the right exit code, no traceback, nothing half-written."""

from dataclasses import replace
import errno
import json
from math import inf, nan
import os
from pathlib import Path
import re
import subprocess

import pytest

from dcvit import ledger, setting, step, training
from dcvit.errors import DATA_OR_ENVIRONMENT, DIVERGED, OK, USAGE, DataError
from dcvit.launch import Run
from dcvit.recipe import DynamicAlpha, FixedAlpha, PatchErasing, Periods, StagedAlpha, StaticAlpha
from dcvit.reproducing import reproduce
from dcvit.scale import at_scale
from dcvit.sources import from_folder
from reproductions.table5_backbones import TABLE as TABLE5
from tests.helpers import TWO, VIT, environment, files_below, image_folder, python, tiny, tiny_table


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DCVIT_DATA", raising=False)
    monkeypatch.setattr(setting, "at_scale", lambda recipe, scale: recipe)


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def call(images, out, capfd):
    """Calls a table's command line; gives back exit code, stdout and stderr."""

    def call(*arguments, table=TWO):
        argv = ["--data", str(images), "--out", str(out), "--jobs", "1", *map(str, arguments)]
        try:
            code = reproduce(table, argv=argv)
        except SystemExit as end:  # argparse
            code = end.code
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def refuses(call, out):
    """Asserts that a call ends with this code and a message that has all of `words`, and wrote nothing."""

    def refuses(code, words, *arguments, table=TWO):
        found, stdout, stderr = call(*arguments, table=table)
        assert found == code, stdout + stderr
        missing = [word for word in words if word not in stderr]
        assert not missing, f"{missing} not in: {stderr}"
        assert "Traceback" not in stdout + stderr
        assert stderr.count("error: ") == 1
        assert not out.is_dir() or files_below(out) == []

    return refuses


# --- the folder of images ------------------------------------------------------------------


def test_a_folder_that_is_missing(refuses, tmp_path):
    place = tmp_path / "nowhere"
    refuses(DATA_OR_ENVIRONMENT, [f"{place} is not a folder", "--data", "train/ and val/"], "--data", place)


def test_a_file_in_place_of_the_folder(refuses, tmp_path):
    (tmp_path / "file").write_text("")
    refuses(DATA_OR_ENVIRONMENT, [f"{tmp_path / 'file'} is not a folder"], "--data", tmp_path / "file")


def test_an_empty_folder(refuses, tmp_path):
    (tmp_path / "empty").mkdir()
    words = [
        f"{tmp_path / 'empty'} has no train/ (found: nothing)",
        "train/ and val/",
        "one folder of images a class",
    ]
    refuses(DATA_OR_ENVIRONMENT, words, "--data", tmp_path / "empty")


def test_an_empty_name(refuses):
    refuses(DATA_OR_ENVIRONMENT, ["--data is empty", "DCVIT_DATA"], "--data", "")


def test_a_folder_without_val(refuses, images):
    (images / "val").rename(images / "test")
    refuses(DATA_OR_ENVIRONMENT, [f"{images} has no val/ (found: test, train)", "train/ and val/"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_classes(refuses, images, split):
    (images / split).rename(images / "elsewhere")
    (images / split).mkdir()
    refuses(DATA_OR_ENVIRONMENT, [f"{images / split} is empty", "one folder of images a class"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_that_differ(refuses, images, split):
    (images / split / "red").rename(images / split / "rot")
    words = [f"{images}: train/ has 3 classes and val/ 3", "red, rot", "the same class folders"]
    refuses(DATA_OR_ENVIRONMENT, words)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_without_images(refuses, images, split):
    folder = images / split / "red"
    for path in folder.iterdir():
        path.rename(path.with_suffix(".txt"))
    refuses(DATA_OR_ENVIRONMENT, [f"{folder} holds no images", ".jpg", ".png"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_jpeg_is_found_before_training(refuses, images, split, monkeypatch):
    from PIL import Image

    path = images / split / "red" / "1.jpg"
    with Image.open(images / split / "red" / "1.png") as image:
        image.resize((64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.setattr(training, "fit", None)
    words = ["1 of 19 images can't be read; replace or remove", f"\n  {path}: image file is truncated"]
    refuses(DATA_OR_ENVIRONMENT, words)
    refuses(DATA_OR_ENVIRONMENT, words)  # what is broken is not remembered as checked


def test_files_that_are_no_images_are_all_named(refuses, images):
    paths = [images / "train" / "red" / "0.png", images / "val" / "blue" / "1.png"]
    for path in paths:
        path.write_text("not an image")
    words = ["2 of 18 images can't be read; replace or remove them", *(f"\n  {path}: " for path in paths)]
    refuses(DATA_OR_ENVIRONMENT, words)


def test_a_folder_that_is_named_like_an_image(refuses, images):
    path = images / "train" / "red" / "9.png"
    path.mkdir()
    refuses(DATA_OR_ENVIRONMENT, [str(path)])


def test_a_link_that_leads_nowhere(refuses, images):
    path = images / "train" / "red" / "9.png"
    path.symlink_to("nowhere")
    refuses(DATA_OR_ENVIRONMENT, [str(path)])


def test_an_image_that_is_not_used_may_be_broken(call, images):
    (images / "train" / "red" / "3.png").write_text("not an image")
    assert call("--train-images", "9")[0] == OK


def test_an_image_that_disappears_after_the_check(images):
    source = from_folder(images)
    path = images / "train" / "red" / "0.png"
    path.unlink()
    with pytest.raises(DataError, match=rf"^{path} can't be read any more"):
        training.pictures(source, "train", tiny())


def test_labels_beyond_the_classes(call, images, monkeypatch):
    monkeypatch.setattr(setting, "on_images", lambda recipe, **_: replace(recipe, classes=2))
    code, stdout, stderr = call()
    assert code == DATA_OR_ENVIRONMENT
    assert f"error: {images}: train has the label 2, the recipe has 2 classes (0 to 1)" in stderr
    assert "Traceback" not in stdout + stderr


@pytest.mark.parametrize("option", ["--train-images", "--test-images"])
def test_more_images_than_there_are(refuses, option):
    refuses(DATA_OR_ENVIRONMENT, ["99 images asked for", "ask for 1 to "], option, 99)


def test_more_digits_than_there_are(out, capfd):
    """They are counted before anything is trained, as files are."""
    code = reproduce(TWO, argv=["--out", str(out), "--jobs", "1", "--train-images", "1439"])
    assert code == DATA_OR_ENVIRONMENT
    assert (
        "--train-images 1439: 1439 images asked for, 1438 there are in train of digits: ask for 1 to 1438"
        in capfd.readouterr().err
    )
    assert not out.is_dir() or files_below(out) == []


def test_a_batch_larger_than_the_set(refuses):
    words = ["a batch of 4 is larger than the 3 training images", "more images"]
    refuses(DATA_OR_ENVIRONMENT, words, "--train-images", 3)


def test_a_folder_of_other_classes_at_paper_scale(refuses, images):
    words = [f"{images} has 3 classes", "the 1,000 of ImageNet-1k", "--scale smoke"]
    refuses(DATA_OR_ENVIRONMENT, words, "--scale", "paper")


def test_no_folder_at_paper_scale(out, capfd):
    assert reproduce(TWO, argv=["--scale", "paper", "--out", str(out)]) == DATA_OR_ENVIRONMENT
    error = capfd.readouterr().err
    for word in ("--data FOLDER", "DCVIT_DATA", "train/ and val/"):
        assert word in error
    assert not out.exists()


# --- arguments -----------------------------------------------------------------------------


def test_an_unknown_scale(refuses):
    refuses(USAGE, ["--scale", "huge", "smoke", "small", "paper"], "--scale", "huge")


def test_an_unknown_scale_in_python():
    with pytest.raises(ValueError, match=r"scale 'huge': one of smoke, small, paper"):
        at_scale(tiny(), "huge")


@pytest.mark.parametrize("option", ["--seeds", "--jobs", "--train-images", "--test-images"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "", "many", "1e3", "²", "--5"])
def test_numbers_that_are_no_counts(refuses, option, value):
    refuses(USAGE, [option, repr(value), "a whole number of at least 1 is needed"], f"{option}={value}")


@pytest.mark.parametrize("value", ["-1", "2.5"])
def test_numbers_of_workers_that_are_no_counts(refuses, value):
    refuses(USAGE, ["--workers", value, "a whole number of at least 0"], f"--workers={value}")


def test_an_option_that_there_is_not(refuses):
    refuses(USAGE, ["unrecognized arguments: --epochs 3"], "--epochs", "3")


def test_an_option_that_is_cut_short(refuses):
    refuses(USAGE, ["unrecognized arguments: --seed 3"], "--seed", "3")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_cuda_device_that_is_not_there(refuses, name, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    words = [f"device '{name}' is not there", "torch sees 0 CUDA devices", "Leave --device out"]
    refuses(DATA_OR_ENVIRONMENT, words, "--device", name)


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", ""])
def test_a_device_of_another_name(refuses, name):
    refuses(DATA_OR_ENVIRONMENT, [f"device '{name}'", '"cpu", "cuda" or "cuda:N"'], "--device", name)


# --- recipes -------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_size", [3, 5, 16])
def test_patches_to_erase_that_do_not_tile_the_image(refuses, monkeypatch, patch_size):
    wrong = lambda recipe, scale: replace(recipe, erasing=PatchErasing(patch_size=patch_size))  # noqa: E731
    monkeypatch.setattr(setting, "at_scale", wrong)
    words = [f"PatchErasing(patch_size={patch_size}) does not tile a 8x8 image", "a divisor of 8"]
    refuses(USAGE, words)


def test_patches_of_a_network_that_do_not_tile_the_image(refuses, monkeypatch):
    monkeypatch.setattr(setting, "at_scale", lambda recipe, scale: replace(recipe, resolution=10))
    refuses(USAGE, ["VisionTransformer(patch_size=4) does not tile a 10x10 image", "a divisor of 10"])


@pytest.mark.parametrize("patch_size", [0, -4])
def test_patches_without_size(patch_size):
    with pytest.raises(ValueError, match=rf"patch_size={patch_size}"):
        tiny(erasing=PatchErasing(patch_size=patch_size))


@pytest.mark.parametrize("patch_size", [0, -4])
def test_patches_of_a_network_without_size(patch_size):
    with pytest.raises(ValueError, match=rf"patch_size={patch_size}"):
        tiny(backbone=replace(VIT, patch_size=patch_size))


@pytest.mark.parametrize("mu", [-0.1, 1.1, nan, inf])
def test_mu_outside_0_to_1(mu):
    with pytest.raises(ValueError, match=rf"mu={mu}.* share of patches erased, in \[0, 1\]"):
        PatchErasing(patch_size=4, mu=mu)


@pytest.mark.parametrize("alpha", [-0.1, nan, inf])
@pytest.mark.parametrize(
    "rule",
    [
        lambda alpha: FixedAlpha(alpha=alpha),
        lambda alpha: DynamicAlpha(start=alpha),
        lambda alpha: StaticAlpha(final=alpha),
        lambda alpha: StagedAlpha(growth=alpha),
    ],
    ids=["fixed", "dynamic", "static", "staged"],
)
def test_alpha_that_is_negative_or_not_a_number(rule, alpha):
    with pytest.raises(ValueError, match=rf"={alpha}.*: .*alpha.*, finite and >= 0"):
        rule(alpha)


@pytest.mark.parametrize("alpha", [-0.1, nan])
def test_alpha_of_cutmix_that_is_negative_or_not_a_number(alpha):
    with pytest.raises(ValueError, match=rf"cutmix_alpha={alpha}.* finite and >= 0"):
        tiny(cutmix_alpha=alpha)


@pytest.mark.parametrize("name", ["resolution", "classes", "epochs", "batch", "groups"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_of_a_recipe_below_1(name, value):
    with pytest.raises(ValueError, match=rf"Recipe\({name}={value}\): .* 1 .*needed"):
        tiny(**{name: value})


def test_thresholds_in_the_wrong_order():
    with pytest.raises(
        ValueError, match=r"hard_below=0.9, easy_above=0.1.*0 <= hard_below <= easy_above <= 1"
    ):
        tiny(hard_below=0.9, easy_above=0.1)


@pytest.mark.parametrize("borders", [(-0.1, 0.5), (0.5, 0.4), (0.5, 1.1), (nan, 0.5)])
def test_periods_that_are_no_fractions_in_order(borders):
    with pytest.raises(ValueError, match=r"0 <= formation_end <= exploration_start <= 1"):
        Periods(*borders)


# --- the place for results -----------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "below"])
def test_an_output_folder_that_can_not_be_written(refuses, tmp_path, below, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(training, "fit", None)
    place = tmp_path / "file" / below
    refuses(DATA_OR_ENVIRONMENT, [f"{place} can't be written", "--out"], "--out", place)
    assert (tmp_path / "file").read_text() == "mine"


def full_disk(monkeypatch, *, after):
    """The disk takes so many more files."""
    original, taken = os.fsync, []

    def fsync(handle):
        if not os.path.isdir(f"/proc/self/fd/{handle}"):
            taken.append(handle)
            if len(taken) > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 7, 8, 9])
def test_a_full_disk(call, out, after, monkeypatch):
    """Files in turn: the trial, the check's note, two times two weights and a record, page and facts."""
    with monkeypatch.context() as patch:
        full_disk(patch, after=after)
        code, stdout, stderr = call()
    assert code == DATA_OR_ENVIRONMENT
    assert "No space left on device" in stderr
    assert str(out) in stderr
    assert ": :" not in stderr
    assert "Traceback" not in stdout + stderr
    left = [name for name in files_below(out) if Path(name).name.startswith(".")] if out.exists() else []
    assert left == []
    assert call()[0] == OK


def test_a_disk_that_is_full_when_weights_are_written(call, monkeypatch):
    saved, write_bytes = [], Path.write_bytes

    def full(path, content):
        if ".safetensors" not in path.name:
            return write_bytes(path, content)
        saved.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, stderr = call()
    assert code == DATA_OR_ENVIRONMENT
    assert "No space left on device" in stderr
    assert stderr.count("could not be saved") == 2  # a state after each epoch, which is no reason to stop
    assert [path.name.split(".")[1] for path in saved].count("last") == 1  # the next run would fail alike


def test_a_full_disk_stops_the_remaining_runs(call, monkeypatch):
    calls = []

    def fit(recipe, *_, **__):
        calls.append(recipe)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(training, "fit", fit)
    assert call()[0] == DATA_OR_ENVIRONMENT
    assert len(calls) == 1


# --- records -------------------------------------------------------------------------------


def record_of(out):
    """The record of TWO's baseline."""
    (path,) = out.glob(f"ledger/{Run(tiny(), 0).id}-????????/record.json")
    return path


def cut_off(path):
    path.write_text(path.read_text()[:-50])


def older(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": 0}))


def of_another_run(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 5}))


def without_weights(path):
    (path.parent / "last.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_off, "is cut off or damaged"),
        (older, f"has layout 0; this version writes and reads layout {ledger.LAYOUT}"),
        (of_another_run, "is the record of another recipe or seed"),
        (without_weights, "last.safetensors is missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_record_that_can_not_be_used_is_named_moved_aside_and_made_again(call, out, damage, words):
    call()
    path = record_of(out)
    whole = json.loads(path.read_text())
    damage(path)
    kept = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    code, plan, _ = call("--plan")
    assert (code, plan.count("unusable record")) == (OK, 1)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == kept

    code, stdout, stderr = call()
    aside = path.parent.with_name(f"{path.parent.name}.unusable-1")
    assert code == OK
    assert str(path.parent) in stderr
    assert words in stderr
    assert f"Its folder is now {aside}; the run is made again" in stderr
    assert "Traceback" not in stdout + stderr
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == kept
    again = json.loads(path.read_text())
    assert again["weights"] == whole["weights"]
    assert call()[2] == ""


def test_damaged_weights_that_a_run_starts_from_are_named_and_made_again(call, out):
    table = tiny_table(baseline=tiny(), ours=tiny(pretrained=tiny(), resolution=16))
    call(table=tiny_table(baseline=tiny()))
    path = record_of(out).with_name("last.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    _, _, first = call(table=table)
    assert f"{path} is damaged" in first
    assert call(table=table)[0] == OK


# --- losses --------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number(call, out, monkeypatch):
    original = step.two_label_loss
    calls = []

    def loss(*arguments, **options):
        calls.append(original(*arguments, **options))
        return calls[-1]._replace(mean=calls[-1].mean * nan) if len(calls) == 3 else calls[-1]

    monkeypatch.setattr(step, "two_label_loss", loss)
    code, stdout, stderr = call()
    assert code == DIVERGED
    told = re.search(
        r"FAILED: diverged: .* update 2 \(epoch 1, learning rate \S+\); the gradient norms .* nan", stdout
    )
    assert told is not None
    assert "Traceback" not in stdout + stderr
    (state,) = out.glob("ledger/*/diverged.safetensors")
    assert str(state) in stdout
    facts = json.loads((out / "table99.json").read_text())
    assert sorted(len(cell["values"]) for cell in facts["cells"]) == [0, 0, 1, 1]


# --- the real command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "nowhere"], DATA_OR_ENVIRONMENT, "nowhere is not a folder"),
        (["--scale", "huge"], USAGE, "invalid choice: 'huge'"),
        (["--seeds", "0"], USAGE, "'0': a whole number of at least 1 is needed"),
        (["--seeds", "-3"], USAGE, "'-3': a whole number of at least 1 is needed"),
        (["--out", "/dev/null/out"], DATA_OR_ENVIRONMENT, "/dev/null/out can't be written"),
        (["--scale", "paper"], DATA_OR_ENVIRONMENT, "Give --data FOLDER, or set DCVIT_DATA"),
    ],
)
def test_table_5_refuses(arguments, code, words, tmp_path):
    command = python("-m", "reproductions.table5_backbones", *arguments)
    child = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert child.returncode == code
    assert words in child.stderr
    assert child.stdout == ""
    assert "Traceback" not in child.stderr
    assert list(tmp_path.iterdir()) == []


def test_table_5_wants_more_images_than_a_batch(images, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(setting, "at_scale", at_scale)
    code = reproduce(TABLE5, argv=["--data", str(images), "--out", str(tmp_path / "out")])
    assert code == DATA_OR_ENVIRONMENT
    assert "a batch of 64 is larger than the 12 training images" in capfd.readouterr().err
