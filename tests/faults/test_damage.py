"""Damaged files, bad numbers, vanishing images, odd clocks, moved folders, other versions: each has its outcome."""

from dataclasses import replace
import json
from math import nan
import multiprocessing
import os
import shutil
import signal
import time

import pytest

from dcvit import (
    claims,
    datasets,
    keeping,
    launch,
    ledger,
    loop,
    origin,
    pausing,
    sources,
    state,
    step,
)
from dcvit.claims import claim, state_of
from dcvit.errors import Paused
from dcvit.executing import execute
from dcvit.feed import Feed
from dcvit.launch import make_all
from dcvit.runs import Place, Run, Watcher, finished
from dcvit.sources import from_folder
from dcvit.stopping import listening
from tests.faults import child
from tests.helpers import image_folder, tiny, without_times

RUN = Run(child.ALL_OF_IT, 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture
def place(source, tmp_path):
    return Place(source, tmp_path / "out", "cpu", 0, save_every=0.0)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """The record of a run that nobody disturbs."""
    calm = Place(source, tmp_path_factory.mktemp("undisturbed"), "cpu", 0)
    return execute(RUN, calm, lambda progress: None).record


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """States after every update."""
    for module in (loop, state):
        monkeypatch.setattr(module, "READ_EVERY", 1)
    monkeypatch.setattr(keeping, "SHARE", float("inf"))


def train(place, run=RUN, stopped=str):
    return execute(run, place, lambda progress: None, stopped)


def stop_after(updates, place, run=RUN):
    """Trains so many updates; the states of the last two are there then."""
    looks = []

    def stopped():
        looks.append(1)
        return "SIGTERM" if len(looks) >= updates else ""

    assert train(place, run, stopped).kind == "paused"
    return pausing.states(place.folder_of(run))


def counted(monkeypatch):
    """The updates that are made from now on."""
    made, original = [], loop.train_step

    def watched(*arguments, **options):
        made.append(options["update"])
        original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", watched)
    return made


# --- states --------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty], ids=lambda damage: damage.__name__)
def test_a_damaged_state_is_named_and_the_one_before_is_gone_on_from(
    damage, place, expected, monkeypatch, capsys
):
    newest, before = stop_after(3, place)
    damage(newest)
    made = counted(monkeypatch)
    assert without_times(train(place).record) == without_times(expected)
    assert made == [2, 3, 4, 5]
    assert f"note: {newest} is damaged" in capsys.readouterr().err
    assert not before.exists()


def test_when_both_states_are_damaged_the_run_begins_anew_and_can_be_stopped_again(
    place, expected, monkeypatch, capsys
):
    for path in stop_after(5, place):
        flip(path)
    made = counted(monkeypatch)
    stop_after(2, place)
    assert capsys.readouterr().err.count("is damaged") == 2
    assert without_times(train(place).record) == without_times(expected)
    assert made == [0, 1, 2, 3, 4, 5], "what was made after the new beginning is not lost at the second stop"


# --- records -------------------------------------------------------------------------------


def in_a_folder(path):
    path.unlink()
    path.mkdir()


RUINS = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": empty,
    "of an older layout": lambda path: path.write_text(json.dumps({"layout": 0, "top1": 1.0})),
    "no record": lambda path: path.write_text("[1, 2]"),
    "of somebody else": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff"),
    "a folder": in_a_folder,
}


@pytest.mark.parametrize("ruin", RUINS)
def test_a_record_that_is_none_is_named_and_costs_no_other_run(ruin, place):
    other = Run(tiny(), 1)
    for run in (RUN, other):
        assert train(place, run).record is not None
    path = place.folder_of(RUN) / "record.json"
    RUINS[ruin](path)
    records, unusable = finished([RUN, other], place)
    assert records.keys() == {other}
    assert unusable.keys() == {RUN}
    assert str(path) in unusable[RUN]
    outcome = train(place)
    assert outcome.record is None
    assert str(path) in outcome.problem
    ledger.move_aside(place.folder_of(RUN))
    assert train(place).record is not None


# --- numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [0, 1, 3, 5])
def test_nan_at_any_update_is_named_and_comes_to_no_record(update, place, expected, monkeypatch):
    original = step.two_label_loss
    made = counted(monkeypatch)

    def poisoned(*arguments, **options):
        found = original(*arguments, **options)
        return found._replace(mean=found.mean * nan) if made[-1] == update else found

    with monkeypatch.context() as patch:
        patch.setattr(step, "two_label_loss", poisoned)
        outcome = train(place)
    assert outcome.kind == "diverged"
    assert f"not finite at update {update} " in outcome.problem
    folder = place.folder_of(RUN)
    assert json.loads((folder / "outcome.json").read_text())["kind"] == "diverged"
    assert (folder / "diverged.safetensors").exists()
    assert [pausing.read_course(path).update for path in pausing.states(folder)] == [
        each for each in (update, update - 1) if each > 0
    ], "no state after the bad update"
    assert without_times(train(place).record) == without_times(expected), "it was the machine's fault"
    assert not (folder / "diverged.safetensors").exists()


# --- images --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize(("augmentation", "workers"), [("device", 0), ("device", 2), ("pil", 1)])
@pytest.mark.parametrize("how", ["gone", "cut", "garbled", "a folder"])
def test_an_image_that_vanishes_in_mid_run_is_named_and_the_run_goes_on_when_it_is_back(
    how, augmentation, workers, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)  # else small sets are held in memory
    source = from_folder(image_folder(tmp_path / "images"))
    run = Run(tiny(epochs=4), 0)  # every epoch sees all images
    place = replace(place, source=source, workers=workers, feed=Feed(augmentation=augmentation))
    expected = train(replace(place, out=tmp_path / "undisturbed"), run)
    path = source.root / source.train[3].path
    content = path.read_bytes()
    original = loop.train_step

    def then_lost(*arguments, **options):
        original(*arguments, **options)
        if options["update"] == 1:
            if how in ("cut", "garbled"):
                path.write_bytes(content[:60] + (content[61:] if how == "garbled" else b""))
                return
            path.unlink(missing_ok=True)
            if how == "a folder":
                path.mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", then_lost)
        outcome = train(place, run)
    assert outcome.kind == "environment", outcome
    assert f"{path} can't be read any more" in outcome.problem
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)
    made = counted(monkeypatch)
    assert without_times(train(place, run).record) == without_times(expected.record)
    assert made[0] > 0, "what was done is not done again"


def test_an_image_that_may_not_be_read_any_more_is_not_taken_for_a_full_disk(place, monkeypatch):
    """The system says `Permission denied` of images and of results."""
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)
    place = replace(place, source=from_folder(place.source.root))
    made = counted(monkeypatch)
    original = sources.File.open

    def refuse(file, root):
        if len(made) >= 2:
            raise PermissionError(13, "Permission denied", str(root / file.path))
        return original(file, root)

    monkeypatch.setattr(sources.File, "open", refuse)
    outcome = train(place)
    assert outcome.kind == "environment"
    assert "can't be read any more" in outcome.problem
    assert "Permission denied" in outcome.problem
    assert "--out" not in outcome.problem


# --- time and place ------------------------------------------------------------------------


def test_a_clock_that_jumps_back_changes_nothing(place, expected, monkeypatch):
    """By a year, between two updates and between two calls: states, claims and records stay in order."""
    offset, original, step_ = [0.0], time.time, loop.train_step

    def jumping(*arguments, **options):
        step_(*arguments, **options)
        offset[0] -= 3.15e7

    for module in (loop, launch, claims):
        monkeypatch.setattr(module, "time", lambda: original() + offset[0])
    monkeypatch.setattr(loop, "train_step", jumping)
    for updates in (2, 2):
        newest = stop_after(updates, place)[0]
        os.utime(newest, (original() + offset[0],) * 2)
    for path in place.folder_of(RUN).glob("claim-*"):
        os.utime(path, (original() + 3e7,) * 2)  # written before the jump: in the future now
    assert pausing.read_course(pausing.find(place.folder_of(RUN))).update == 3
    assert without_times(train(place).record) == without_times(expected)


def test_a_clock_that_jumps_back_ends_no_deadline_early(place, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(loop, "time", lambda: now[0])
    monkeypatch.setattr(launch, "time", lambda: now[0])
    original = loop.train_step

    def jumping(*arguments, **options):
        original(*arguments, **options)
        now[0] -= 3600

    monkeypatch.setattr(loop, "train_step", jumping)
    late = replace(place, deadline=1e9 + 60)
    assert make_all([RUN], late, jobs=1, watcher=Watcher())[RUN].record is not None


def test_a_folder_that_is_moved_between_stop_and_go_makes_no_difference(place, expected, tmp_path):
    stop_after(3, place)
    moved = replace(place, out=tmp_path / "elsewhere" / "results")
    moved.out.parent.mkdir()
    shutil.move(place.out, moved.out)
    assert without_times(train(moved).record) == without_times(expected)
    assert not place.out.exists()


@pytest.mark.parametrize("package", ["torch", "timm"])
def test_other_versions_are_refused_unless_allowed_and_then_noted(
    package, place, expected, monkeypatch, capsys
):
    facts = origin.provenance()
    old = {**facts, "versions": {**facts["versions"], package: "0.0.1"}}
    with monkeypatch.context() as patch:
        patch.setattr(origin, "provenance", lambda: old)
        stop_after(2, place)
    now = facts["versions"][package]
    made = counted(monkeypatch)
    outcome = train(place)
    assert outcome.kind == "environment"
    assert f"was saved with {package} 0.0.1 (now {now})" in outcome.problem
    assert "--allow-version-change" in outcome.problem
    assert made == []
    assert len(pausing.states(place.folder_of(RUN))) == 2
    record = train(replace(place, allow_changes=True)).record
    assert made == [2, 3, 4, 5]
    words = f"after update 2: {package} 0.0.1 (now {now})"
    assert record.environment["changes"] == [words]
    assert f"note: {words}\n" in capsys.readouterr().err
    assert record.weights == expected.weights


# --- signals in odd moments ----------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda each: each.name
)
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_during_evaluation_saves_the_state_and_looks_at_all_images_again(
    epoch, number, place, expected, monkeypatch
):
    original, calls = loop.evaluate, []

    def disturbed(model, test, batches, **options):
        def one_by_one():
            for index, batch in enumerate(batches):
                if len(calls) == epoch and index == 0:
                    os.kill(os.getpid(), number)
                yield batch

        calls.append(1)
        return original(model, test, one_by_one(), **options)

    with monkeypatch.context() as patch, listening() as stopped:
        patch.setattr(loop, "evaluate", disturbed)
        outcome = train(place, stopped=stopped)
    assert outcome.kind == "paused"
    assert f"paused after {3 * epoch} of 6 updates ({number.name})" in outcome.problem
    course = pausing.read_course(pausing.find(place.folder_of(RUN)))
    assert (course.update, len(course.evolution)) == (3 * epoch, epoch - 1)
    made = counted(monkeypatch)
    assert without_times(train(place).record) == without_times(expected)
    assert made == [3, 4, 5][3 * (epoch - 1) :]


def test_a_signal_while_a_state_is_saved_waits_until_it_is(place, expected, monkeypatch):
    original = keeping.save_state
    sent = []

    def disturbed(*arguments):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return original(*arguments)

    with monkeypatch.context() as patch, listening() as stopped:
        patch.setattr(keeping, "save_state", disturbed)
        outcome = train(place, stopped=stopped)
    assert outcome.kind == "paused"
    assert without_times(train(place).record) == without_times(expected)


# --- processes that the system kills -------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2")
def test_a_loading_process_that_is_killed_fails_the_run_which_then_goes_on(place, tmp_path, monkeypatch):
    two = replace(place, workers=2, feed=Feed(augmentation="pil"))
    expected = train(replace(two, workers=0, out=tmp_path / "undisturbed")).record
    original, before = loop.train_step, set(multiprocessing.active_children())

    def disturbed(*arguments, **options):
        original(*arguments, **options)
        if options["update"] == 1:
            loading = set(multiprocessing.active_children()) - before
            assert len(loading) >= 2
            for process in loading:
                process.kill()

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", disturbed)
        outcome = train(two)
    assert outcome.kind == "failed"
    assert "DataLoader worker" in outcome.problem
    assert state_of(place.folder_of(RUN)) == "free"
    made = counted(monkeypatch)
    assert without_times(train(two).record) == without_times(expected)
    assert made[0] > 0
    assert set(multiprocessing.active_children()) <= before


def test_a_process_of_several_that_is_killed_costs_its_run_and_that_goes_on(place, expected, monkeypatch):
    """As the system does when memory runs out."""
    other = Run(tiny(), 7)
    monkeypatch.setattr(launch, "get_context", lambda _: child.CONTEXT)
    monkeypatch.setattr(launch, "_work", child.works_and_dies)
    child.serve()
    place.out.mkdir()
    (place.out / "victim").write_text(RUN.id)
    outcomes = make_all([RUN, other], place, jobs=2, watcher=Watcher())
    assert outcomes[RUN].kind == "failed"
    assert outcomes[RUN].problem == "its process ended with code -9, see above"
    assert outcomes[other].record is not None
    assert state_of(place.folder_of(RUN)) == "lost"
    made = counted(monkeypatch)
    assert without_times(train(place).record) == without_times(expected)
    assert made[0] == 3


def test_who_holds_a_run_can_not_be_the_reason_to_wait_for_ever(place, monkeypatch):
    """One that is at it stays at it until the deadline: the call ends then and says who it was."""
    monkeypatch.setattr(launch, "POLL", 0.01)
    claim(place.folder_of(RUN))
    late = replace(place, deadline=time.time() + 0.3)
    outcome = make_all([RUN], late, jobs=1, watcher=Watcher())[RUN]
    assert outcome.kind == "stopped"
    assert "another process is at it" in outcome.problem


def test_paused_is_no_error():
    assert not issubclass(Paused, (ValueError, OSError, RuntimeError))
