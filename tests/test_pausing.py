"""A run that is paused, however often and wherever, ends as if nobody had disturbed it, to the bit.

And a state that is damaged, or was saved by something else, is named and not used.
"""

from collections import Counter
from dataclasses import replace
from datetime import datetime
import errno
from math import nan
import os
from pathlib import Path
import re
import shutil
from time import time

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch

from dcvit import checkpoint, ledger, loop, origin, pausing, state, step, training
from dcvit.checkpoint import load_state, save_state
from dcvit.errors import Diverged, EnvironmentProblem, Paused
from dcvit.feed import AUGMENTING, Feed
from dcvit.pausing import Course, UnusableState
from dcvit.recipe import (
    Augmentation,
    DifficultyProbe,
    DynamicAlpha,
    PatchErasing,
    Periods,
    StagedAlpha,
    StaticAlpha,
)
from dcvit.sources import from_folder
from dcvit.training import fit
from tests.helpers import PLAIN, RESNET, SWIN, image_folder, tiny, without_times

CPU = torch.device("cpu")
ERASE = PatchErasing(patch_size=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """12 images of training and 6 of test, of three colours."""
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture
def read_every(monkeypatch):
    """Sets how many updates lie between two looks at the clock; an epoch has 3."""

    def read_every(updates):
        for module in (loop, state):
            monkeypatch.setattr(module, "READ_EVERY", updates)

    return read_every


def folder_of(out, recipe, source, seed=0):
    return ledger.folder_of(out, recipe, seed, source.fingerprint)


def pause(recipe, source, out, **options):
    """Trains up to the first look at the clock, and gives back the file of the state."""
    with pytest.raises(Paused):
        fit(recipe, 0, source, out, CPU, deadline=0.0, **options)
    return pausing.find(folder_of(out, recipe, source))


def in_pieces(recipe, source, out, **options):
    """The record of a run that is paused at every look, and the updates after which it was."""
    pauses = []
    while True:
        try:
            return fit(recipe, 0, source, out, CPU, deadline=0.0, **options), pauses
        except Paused:
            course = pausing.read_course(pausing.find(folder_of(out, recipe, source)))
            pauses.append(course.update)
            assert len(pauses) < course.updates, "a call brings a run forward, however late it is"


# --- to the bit ----------------------------------------------------------------------------

RECIPES = {
    "vit, all of it": tiny(
        alpha=DynamicAlpha(tau=0.5),
        easy_above=0.4,
        hard_below=0.36,
        exploration_erasing=ERASE,
        ema_decay=0.9,
        drop_path=0.3,
        augmentation=Augmentation(),
    ),
    "swin, groups, clipping": tiny(backbone=SWIN, drop_path=0.3, groups=2, clip_norm=1.0),
    "resnet, batch statistics, average": tiny(backbone=RESNET, ema_decay=0.9, drop_path=0.3),
    "repeats": tiny(augmentation=Augmentation(repeats=3)),
    "static alpha": tiny(alpha=StaticAlpha(), periods=Periods(0.25, 0.5)),
    "staged alpha": tiny(alpha=StagedAlpha(formation=0.05, exploration=8.0), periods=Periods(0.25, 0.5)),
    "evaluation mode": tiny(train_mode=False, drop_path=0.5),
    "a difficulty probe": tiny(difficulty_probe=DifficultyProbe(patch_size=4, images=7, times=2)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_paused_after_every_update_ends_as_an_undisturbed_one(name, source, tmp_path, read_every):
    undisturbed = fit(RECIPES[name], 0, source, tmp_path / "undisturbed", CPU)
    read_every(1)
    record, pauses = in_pieces(RECIPES[name], source, tmp_path / "pieces")
    assert pauses == [1, 2, 3, 4, 5]
    assert without_times(record) == without_times(undisturbed)  # the checksums of the weights among the rest
    assert ledger.find(tmp_path / "pieces", RECIPES[name], 0, source.fingerprint) == record


@pytest.mark.parametrize(
    ("updates", "pauses"), [(2, [2, 3, 4]), (3, [3]), (4, [3, 4]), (5, [3, 5]), (50, [3])]
)
def test_a_run_is_paused_where_the_device_is_looked_at_and_between_epochs(
    updates, pauses, source, tmp_path, read_every
):
    recipe = RECIPES["vit, all of it"]
    undisturbed = fit(recipe, 0, source, tmp_path / "undisturbed", CPU)
    read_every(updates)
    record, found = in_pieces(recipe, source, tmp_path / "pieces")
    assert found == pauses
    assert without_times(record) == without_times(undisturbed)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")  # on a machine of one core
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("augmentation", AUGMENTING)
def test_loaders_change_nothing(augmentation, workers, source, tmp_path, read_every):
    recipe, feed = RECIPES["vit, all of it"], Feed(augmentation=augmentation)
    undisturbed = fit(recipe, 0, source, tmp_path / "undisturbed", CPU, feed=feed)
    read_every(2)
    record, pauses = in_pieces(recipe, source, tmp_path / "pieces", workers=workers, feed=feed)
    assert pauses == [2, 3, 4]
    assert without_times(record) == without_times(undisturbed)


@pytest.mark.parametrize("backbone", [tiny().backbone, SWIN, RESNET], ids=["vit", "swin", "resnet"])
def test_fine_tuning_can_be_paused(backbone, source, tmp_path, read_every):
    base = tiny(backbone=backbone)
    wider = replace(backbone, window=4) if backbone == SWIN else backbone
    recipe = tiny(backbone=wider, pretrained=base, resolution=16, train_mode=False, ema_decay=0.5)
    for out in ("undisturbed", "pieces"):
        fit(base, 0, source, tmp_path / out, CPU)
    undisturbed = fit(recipe, 0, source, tmp_path / "undisturbed", CPU)
    read_every(2)
    record, pauses = in_pieces(recipe, source, tmp_path / "pieces")
    assert pauses == [2, 3, 4]
    assert without_times(record) == without_times(undisturbed)


def test_best_weights_from_before_a_pause_are_kept(source, tmp_path):
    recipe = tiny(epochs=4, **PLAIN)
    undisturbed = fit(recipe, 0, source, tmp_path / "undisturbed", CPU)
    assert undisturbed.best["epoch"] < 4, "choose another seed: best and last would be the same"
    record, pauses = in_pieces(recipe, source, tmp_path / "pieces")
    assert pauses == [3, 6, 9]
    assert without_times(record) == without_times(undisturbed)


def test_without_a_deadline_or_long_before_it_nothing_is_paused(source, tmp_path):
    for out, deadline in (("none", None), ("later", time() + 3600)):
        assert fit(tiny(), 0, source, tmp_path / out, CPU, deadline=deadline).samples_seen == 24


def test_after_the_last_epoch_there_is_nothing_to_pause(source, tmp_path):
    assert fit(tiny(epochs=1), 0, source, tmp_path, CPU, deadline=0.0).samples_seen == 12


def test_no_state_is_left_beside_the_record(source, tmp_path, read_every):
    read_every(1)
    in_pieces(tiny(), source, tmp_path)
    names = {path.name for path in folder_of(tmp_path, tiny(), source).iterdir()}
    assert names == {"record.json", "last.safetensors", "best.safetensors"}


def test_while_a_run_is_paused_its_folder_has_the_last_two_states_and_nothing_else(
    source, tmp_path, read_every
):
    read_every(1)
    made = [pause(tiny(), source, tmp_path) for _ in range(5)]
    assert pausing.states(made[0].parent) == made[:2:-1]
    assert len(list(made[0].parent.iterdir())) == 2


def test_the_state_of_an_epochs_end_is_from_before_the_test_images_are_looked_at(
    source, tmp_path, monkeypatch
):
    undisturbed = fit(tiny(), 0, source, tmp_path / "undisturbed", CPU)

    def killed(*_, **__):
        raise KeyboardInterrupt

    for update in (3, 6):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "evaluate", killed)
            with pytest.raises(KeyboardInterrupt):
                fit(tiny(), 0, source, tmp_path, CPU)
        course = pausing.read_course(pausing.find(folder_of(tmp_path, tiny(), source)))
        assert (course.update, len(course.evolution)) == (update, update // 3 - 1)
        if update == 3:
            pause(tiny(), source, tmp_path)
    made = steps_of(monkeypatch)
    assert without_times(fit(tiny(), 0, source, tmp_path, CPU)) == without_times(undisturbed)
    assert made == []


def steps_of(monkeypatch):
    """Counts the updates that are made from now on."""
    made, original = [], loop.train_step

    def counted(*arguments, **options):
        made.append(options["update"])
        original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", counted)
    return made


def test_what_was_done_is_not_done_again(source, tmp_path, monkeypatch, read_every):
    read_every(2)
    made = steps_of(monkeypatch)
    in_pieces(tiny(), source, tmp_path)
    assert made == list(range(6))


# --- what a run says while it goes on ------------------------------------------------------


def test_progress_goes_on_where_it_was(source, tmp_path, read_every):
    read_every(2)
    told = []
    in_pieces(tiny(), source, tmp_path, observe=told.append)
    assert [progress.images for progress in told] == [8, 12, 16, 24, 24]
    assert [progress.epoch for progress in told] == [1, 1, 2, 2, 2]
    assert [progress.top1 is None for progress in told] == [True, False, False, False, False]
    assert [progress.seconds for progress in told] == sorted(progress.seconds for progress in told)


class Calendar:
    """Stands for `datetime`, at so many seconds after the beginning of 1970."""

    def __init__(self, seconds):
        self.seconds = seconds

    def now(self, zone):
        return datetime.fromtimestamp(self.seconds[0], zone)


def test_a_pause_takes_no_time(source, tmp_path, monkeypatch, read_every):
    """An update takes 10 s here and an hour lies between two calls."""
    read_every(2)
    now, original = [0.0], loop.train_step

    def slow(*arguments, **options):
        now[0] += 10
        original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", slow)
    for module in (loop, training):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    monkeypatch.setattr(training, "datetime", Calendar(now))
    courses = []
    for _ in range(3):
        courses.append(pausing.read_course(pause(tiny(), source, tmp_path)))
        now[0] += 3600
    assert [(course.seconds, course.epoch_seconds) for course in courses] == [(20, 20), (30, 0), (40, 10)]
    assert [course.seconds_left for course in courses] == [40, 30, 20]
    record = fit(tiny(), 0, source, tmp_path, CPU)
    assert record.seconds == 60
    assert [entry["seconds"] for entry in record.evolution] == [30, 30]
    assert {course.started for course in courses} == {record.started} == {"1970-01-01T00:00:00+00:00"}


def test_the_message_of_a_later_divergence_has_the_norms_from_before_the_pause(
    source, tmp_path, monkeypatch, read_every
):
    read_every(2)
    recipe = tiny(batch=3, epochs=1)  # 4 updates
    norms, clip = [], step._clip

    def counted(*arguments):
        norms.append(float(found := clip(*arguments)))
        return found

    monkeypatch.setattr(step, "_clip", counted)
    pause(recipe, source, tmp_path)
    original = step.two_label_loss

    def poisoned(*arguments, **options):
        found = original(*arguments, **options)
        return found._replace(mean=found.mean * nan)

    monkeypatch.setattr(step, "two_label_loss", poisoned)
    with pytest.raises(Diverged, match="not finite at update 2") as caught:
        fit(recipe, 0, source, tmp_path, CPU)
    told = re.search(r"norms up to there were (.*)\. The state", str(caught.value))[1]
    assert told.split(", ") == [*(f"{norm:.3g}" for norm in norms[:2]), "nan"]


# --- states that can't be used -------------------------------------------------------------


def assert_begun_anew(recipe, source, out, monkeypatch, capsys, *, why):
    """The run says which state it does not use, begins with update 0, and ends as an undisturbed one."""
    undisturbed = fit(recipe, 0, source, out / "undisturbed", CPU)
    capsys.readouterr()
    made = steps_of(monkeypatch)
    record = fit(recipe, 0, source, out, CPU)
    told = capsys.readouterr().err
    assert re.fullmatch(rf"note: {why}\. It is not used\n", told), told
    assert made == list(range(6))
    assert (record.weights, record.last) == (undisturbed.weights, undisturbed.last)
    assert not list(folder_of(out, recipe, source).glob("state-*"))


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: flipped(content, len(content) // 2),
        lambda content: flipped(content, 40),
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda content: b"",
    ],
    ids=["a bit of a tensor", "a bit of the header", "cut by a byte", "cut in the header", "empty"],
)
def test_a_damaged_state_is_named_and_not_used(damage, source, tmp_path, monkeypatch, capsys, read_every):
    read_every(2)
    path = pause(tiny(), source, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    why = rf"{path} is damaged: its checksum is not the one in its name"
    assert_begun_anew(tiny(), source, tmp_path, monkeypatch, capsys, why=why)


def test_of_two_states_the_older_is_used_if_the_newer_is_damaged(
    source, tmp_path, monkeypatch, capsys, read_every
):
    read_every(1)
    undisturbed = fit(tiny(), 0, source, tmp_path / "undisturbed", CPU)
    pause(tiny(), source, tmp_path)
    path = pause(tiny(), source, tmp_path)
    path.write_bytes(flipped(path.read_bytes(), 1000))
    made = steps_of(monkeypatch)
    assert without_times(fit(tiny(), 0, source, tmp_path, CPU)) == without_times(undisturbed)
    assert made == [1, 2, 3, 4, 5]
    assert f"note: {path} is damaged: " in capsys.readouterr().err


def test_which_state_is_newer_does_not_depend_on_the_clock(source, tmp_path, read_every):
    read_every(1)
    made = [pause(tiny(), source, tmp_path) for _ in range(2)]
    os.utime(made[1], (0, 0))
    assert pausing.states(made[0].parent) == [made[1], made[0]]


def test_a_state_that_can_not_be_read_is_named(source, tmp_path, monkeypatch, capsys):
    path = pause(tiny(), source, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnusableState, match=rf"{path} can't be read \(Is a directory\)"):
        load_state(path)


OTHERS = {
    "seed": (tiny(), 1),
    "recipe": (tiny(label_smoothing=0.2), 0),
    "alpha": (tiny(alpha=DynamicAlpha()), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_run_is_not_used(name, source, tmp_path, monkeypatch, capsys):
    recipe, seed = OTHERS[name]
    with pytest.raises(Paused):
        fit(recipe, seed, source, tmp_path, CPU, deadline=0.0)
    path = pausing.find(folder_of(tmp_path, recipe, source, seed))
    folder = folder_of(tmp_path, tiny(), source)
    folder.mkdir()
    shutil.move(path, folder)
    why = rf"{folder / path.name} was saved with run [0-9a-f]{{12}} \(now [0-9a-f]{{12}}\)"
    assert_begun_anew(tiny(), source, tmp_path, monkeypatch, capsys, why=why)


def test_the_state_of_other_images_is_not_used(source, tmp_path, monkeypatch, capsys):
    other = from_folder(image_folder(tmp_path / "other", train=4, val=2, size=16))
    path = pause(tiny(), other, tmp_path)
    folder = folder_of(tmp_path, tiny(), source)
    folder.mkdir()
    shutil.move(path, folder)
    why = rf"{folder / path.name} was saved with images {other.fingerprint} \(now {source.fingerprint}\)"
    assert_begun_anew(tiny(), source, tmp_path, monkeypatch, capsys, why=why)


CHANGED = ["torch", "timm", "dcvit", "code", "precision"]


@pytest.fixture(params=CHANGED)
def changed(request, source, tmp_path, monkeypatch):
    """A state that was saved when one thing was another; its file, and what is said of it."""
    name, facts, digest, describe = (
        request.param,
        origin.provenance(),
        pausing.code_digest(),
        origin.describe,
    )
    old = "bfloat16" if name == "precision" else "0.0.1"
    with monkeypatch.context() as patch:
        versions = {**facts["versions"], **({name: old} if name in facts["versions"] else {})}
        patch.setattr(origin, "provenance", lambda: {**facts, "versions": versions})
        patch.setattr(pausing, "code_digest", lambda: old if name == "code" else digest)
        if name == "precision":
            patch.setattr(origin, "describe", lambda *rest: {**describe(*rest), name: old})
        path = pause(tiny(), source, tmp_path)
    now = {**facts["versions"], "code": digest, "precision": "float32"}[name]
    return path, f"{name} {old} (now {now})"


def test_a_run_does_not_go_on_by_itself_with_other_versions_or_code(changed, source, tmp_path):
    path, words = changed
    before = path.read_bytes()
    told = re.escape(f"{path} was saved with {words}: ") + ".*--allow-version-change.*remove the file"
    with pytest.raises(EnvironmentProblem, match=told):
        fit(tiny(), 0, source, tmp_path, CPU)
    assert path.read_bytes() == before


def test_where_that_is_allowed_it_goes_on_and_the_record_says_so(
    changed, source, tmp_path, monkeypatch, capsys
):
    _, words = changed
    made = steps_of(monkeypatch)
    record = fit(tiny(), 0, source, tmp_path, CPU, allow_changes=True)
    assert made == [3, 4, 5]
    assert record.environment["changes"] == [f"after update 3: {words}"]
    assert f"note: after update 3: {words}\n" in capsys.readouterr().err


def test_a_change_is_remembered_over_further_pauses(source, tmp_path, monkeypatch, read_every):
    read_every(2)
    original = origin.describe
    for threads in (7, 8):
        with monkeypatch.context() as patch:
            patch.setattr(origin, "describe", lambda *rest, n=threads: {**original(*rest), "threads": n})
            pause(tiny(), source, tmp_path)
    record = fit(tiny(), 0, source, tmp_path, CPU)
    assert record.environment["changes"] == [
        "after update 2: threads 7 (now 8)",
        "after update 3: threads 8 (now 1)",
    ]


def test_an_undisturbed_run_has_no_changes_in_its_record(source, tmp_path):
    assert "changes" not in fit(tiny(), 0, source, tmp_path, CPU).environment


def test_a_fine_tuning_does_not_go_on_when_the_run_before_was_made_again(
    source, tmp_path, monkeypatch, capsys
):
    """The same run on another device, say, has other weights."""
    recipe = tiny(pretrained=tiny(), resolution=16)
    record = fit(tiny(), 0, source, tmp_path, CPU)
    pause(recipe, source, tmp_path)
    folder = folder_of(tmp_path, tiny(), source)
    weights = checkpoint.load_weights(folder / "last.safetensors")
    digest = checkpoint.save_weights(folder / "last.safetensors", {n: 2 * v for n, v in weights.items()})
    ledger.write(folder, replace(record, weights={**record.weights, "last.safetensors": digest}))
    made = steps_of(monkeypatch)
    fit(recipe, 0, source, tmp_path, CPU)
    assert f"was saved with weights {record.weights['last.safetensors']}" in capsys.readouterr().err
    assert made == list(range(6))


# --- one state at a time -------------------------------------------------------------------


def test_when_saving_fails_the_state_before_stays(source, tmp_path, monkeypatch, read_every):
    read_every(1)
    before = pause(tiny(), source, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            fit(tiny(), 0, source, tmp_path, CPU, deadline=0.0)
    assert list(before.parent.iterdir()) == [before]
    assert pausing.read_course(pause(tiny(), source, tmp_path)).update == 2


def test_of_two_states_the_newer_is_used(source, tmp_path, monkeypatch, read_every):
    """The older one is still there after a kill between the writing of the new one and its removal."""
    read_every(1)
    undisturbed = fit(tiny(), 0, source, tmp_path / "undisturbed", CPU)
    older = pause(tiny(), source, tmp_path)
    shutil.copy2(older, tmp_path / older.name)
    newer = pause(tiny(), source, tmp_path)
    shutil.copy2(tmp_path / older.name, older)
    assert {older, newer} == set(newer.parent.iterdir())
    made = steps_of(monkeypatch)
    assert without_times(fit(tiny(), 0, source, tmp_path, CPU)) == without_times(undisturbed)
    assert made == [2, 3, 4, 5]
    assert not list(newer.parent.glob("state-*"))


COURSE = Course(
    maker={"run": "a", "torch": "2"},
    update=3,
    updates=9,
    evolution=[{"epoch": 1, "loss": 0.1 + 0.2, "histogram": [1, 2]}],
    best={"top1": 100 / 3, "epoch": 1},
    started="2026-01-01T00:00:00+00:00",
    seconds=1.5,
    epoch_seconds=0.25,
)
TENSORS = {
    "scalar": torch.tensor(0.1),
    "counter": torch.tensor(2**62),
    "matrix": torch.arange(6.0).view(2, 3).t(),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    path = save_state(tmp_path, TENSORS, COURSE)
    assert path == pausing.find(tmp_path)
    tensors, course = load_state(path)
    assert course == pausing.read_course(path) == COURSE
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        assert tensors[name].shape == expected.shape
        assert torch.equal(tensors[name], expected)


@given(data=st.data())
def test_no_flipped_bit_and_no_missing_byte_goes_unnoticed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    path = save_state(folder, TENSORS, COURSE)
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(content[:at] if cut else flipped(content, at))
    with pytest.raises(UnusableState, match="is damaged"):
        load_state(path)


@given(content=st.binary(max_size=64))
def test_what_is_no_state_is_called_that_whatever_it_holds(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "state-0.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnusableState, match=rf"^{path} can't be read as the state of a run"):
        pausing.read_course(path)


def test_weights_are_no_state(tmp_path):
    checkpoint.save_weights(tmp_path / "state-0.safetensors", TENSORS)
    with pytest.raises(UnusableState, match="can't be read as the state of a run"):
        pausing.read_course(tmp_path / "state-0.safetensors")


@pytest.mark.parametrize(
    ("now", "problem", "why"),
    [
        ({"run": "b", "torch": "2"}, UnusableState, r"run a \(now b\)$"),
        ({"run": "b", "torch": "3"}, UnusableState, r"run a \(now b\)$"),
        ({"run": "a", "torch": "3"}, EnvironmentProblem, r"torch 2 \(now 3\): "),
        ({"run": "a"}, EnvironmentProblem, r"torch 2 \(now None\): "),
        ({"run": "a", "torch": "2", "timm": "1"}, EnvironmentProblem, r"timm None \(now 1\): "),
    ],
)
def test_a_state_is_for_the_one_who_saved_it(now, problem, why, tmp_path):
    with pytest.raises(problem, match=rf"^{tmp_path} was saved with {why}"):
        pausing.changes(now, COURSE, tmp_path, allowed=False)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"run": "a", "torch": "2"}, []),
        ({"run": "a", "torch": "3"}, ["torch 2 (now 3)"]),
        ({"run": "a", "torch": "2", "threads": 4}, ["threads None (now 4)"]),
    ],
)
def test_what_changed_and_was_allowed_is_told(now, words, tmp_path):
    assert pausing.changes(now, COURSE, tmp_path, allowed=True) == words


def test_there_is_no_state_in_a_folder_that_is_not_there(tmp_path):
    assert pausing.find(tmp_path / "nothing") is None
    pausing.forget(tmp_path / "nothing")


def test_the_digest_changes_with_any_line_of_code(tmp_path, monkeypatch):
    package = tmp_path / "dcvit"
    shutil.copytree(Path(pausing.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pausing, "__file__", str(package / "pausing.py"))
    fresh = pausing.code_digest.__wrapped__
    same = fresh()
    digests = Counter([same, fresh()])
    for name in ("erasing.py", "transform.c"):
        with open(package / name, "a", encoding="utf-8") as file:
            file.write("\n")
        digests[fresh()] += 1
    (package / "erasing.py").rename(package / "erasing_.py")
    digests[fresh()] += 1
    assert sorted(digests.values()) == [1, 1, 1, 2]
