"""kill -9 at any moment, then the same command: the record and the weights are those of an undisturbed run."""

from dataclasses import asdict, replace
import json
import os
import random
import shutil
from time import monotonic

import pytest
import torch

from dcvit import checkpoint, keeping, ledger, pausing
from dcvit.claims import claim, holder_of, state_of
from dcvit.feed import Feed
from dcvit.files import sha256_of
from dcvit.pausing import Course
from dcvit.runs import Place, Run
from dcvit.sources import from_folder
from tests.faults import child
from tests.faults.child import ALL_OF_IT, counts, dies_in, finish, start, trains_paced, trains_until
from tests.helpers import SWIN, image_folder, record_of, tiny, without_times

KILLED = -9


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


def undisturbed(run, place, *, pace=0.0):
    """The record of a run that nobody disturbs, in a place of its own."""
    calm = replace(place, out=place.out / "undisturbed")
    assert finish(start(trains_paced, run, calm, pace)) == 0
    return record_at(run, calm)


def record_at(run, place):
    return ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint)


def assert_same(run, place, expected):
    """The record and the weights are those that were expected, and nothing else is left."""
    record = record_at(run, place)
    assert without_times(record) == without_times(expected)
    folder = place.folder_of(run)
    for name, digest in record.weights.items():
        assert sha256_of(folder / name) == digest
    assert {path.name for path in folder.iterdir()} == {"record.json", *record.weights}


# --- at random moments ---------------------------------------------------------------------


def killed_at_random(run, place, moments, *, pace, span):
    """Starts a run again and again and kills it at random moments; how often that hit it, and from where it went on."""
    hits, begun = 0, []
    while record_at(run, place) is None:
        process = start(trains_paced, run, place, pace)
        moment = moments.uniform(0, span)
        process.join(moment)
        hits += process.is_alive()
        child.kill_group(process)
        process.join()
        assert process.exitcode in (0, KILLED)
        states = pausing.states(place.folder_of(run))
        begun.append(pausing.read_course(states[0]).update if states else 0)
        assert len(states) <= 3, "the last two, and one that a kill kept from being removed"
        assert len(begun) < 200, "a run that is killed now and then comes forward"
    return hits, begun


CASES = {
    "all of it": (ALL_OF_IT, {}),
    "in two pieces": (ALL_OF_IT, {"micro_batch": 2}),
    "a decoding process": (ALL_OF_IT, {"workers": 1, "feed": Feed(augmentation="pil")}),
    "a decoding thread": (ALL_OF_IT, {"workers": 1}),
    "swin": (tiny(backbone=SWIN, clip_norm=1.0, drop_path=0.3), {}),
}


def test_twenty_kills_at_random_moments_change_no_bit(source, tmp_path):
    moments = random.Random(20)
    total = number = 0
    while total < 20 or number < len(CASES):
        recipe, how = list(CASES.values())[number % len(CASES)]
        run = Run(replace(recipe, epochs=4), number)
        place = Place(source, tmp_path / str(number), "cpu", **{"workers": 0, **how})
        begin = monotonic()
        expected = undisturbed(run, place, pace=0.05)
        span = 0.6 * (monotonic() - begin)
        hits, begun = killed_at_random(run, place, moments, pace=0.05, span=span)
        assert begun[:-1] == sorted(begun[:-1]), "no kill throws a run back"
        assert_same(run, place, expected)
        total, number = total + hits, number + 1


# --- between every two system calls --------------------------------------------------------


def calls_of(action, tmp_path, *arguments):
    """The names of the system calls that an action makes."""
    assert finish(start(counts, action, tmp_path / "calls.json", *arguments)) == 0
    return json.loads((tmp_path / "calls.json").read_text())


def course(update):
    return Course(
        maker={"run": "a"},
        update=update,
        updates=9,
        evolution=[],
        best={},
        started="",
        seconds=1.0,
        epoch_seconds=0.0,
    )


def save_state(folder, update):
    checkpoint.save_state(folder, {"weights": torch.full((100,), float(update))}, course(update))


def usable(folder):
    """The updates of the states that can be gone on from, newest first; the others must say what is wrong."""
    found = []
    for path in pausing.states(folder):
        tensors, course = checkpoint.load_state(path)
        assert tensors["weights"].tolist() == [course.update] * 100
        found.append(course.update)
    return found


def test_a_kill_while_a_state_is_saved_leaves_the_one_before_or_the_new_one(tmp_path):
    for update in (1, 2, 3):
        save_state(tmp_path / "dry", update)
    calls = calls_of(save_state, tmp_path, tmp_path / "dry", 4)
    assert {"mkstemp", "write_bytes", "the other half", "fsync", "replace", "unlink"} <= set(calls)
    seen = set()
    for number in range(len(calls)):
        folder = tmp_path / str(number)
        for update in (1, 2, 3):
            save_state(folder, update)
        assert finish(start(dies_in, save_state, number, folder, 4)) == KILLED
        seen.add(tuple(usable(folder)))
        keeping.clean(folder)
        save_state(folder, 5)
        assert usable(folder)[0] == 5
        assert len(list(folder.iterdir())) == 2
    assert seen == {(3, 2), (4, 3, 2)}


def test_a_kill_while_a_record_is_written_leaves_none_or_all_of_it(tmp_path):
    record = record_of(tiny(), 0, 50.0)
    expected = asdict(record)
    calls = calls_of(ledger.write, tmp_path, tmp_path / "dry", record)
    assert {"mkstemp", "write_text", "the other half", "fsync", "replace"} <= set(calls)
    there = []
    for number in range(len(calls)):
        folder = tmp_path / str(number)
        assert finish(start(dies_in, ledger.write, number, folder, record)) == KILLED
        there.append((folder / "record.json").exists())
        if there[-1]:
            assert asdict_of(folder) == expected
        if folder.exists():
            keeping.clean(folder)
            assert [path.name for path in folder.iterdir()] == ["record.json"] * there[-1]
        ledger.write(folder, record)
        assert asdict_of(folder) == expected
    assert there == sorted(there)
    assert set(there) == {False, True}


def asdict_of(folder):
    return json.loads((folder / "record.json").read_text())


def claim_and(folder, then):
    mine = claim(folder)
    if then == "beat":
        mine.beat(dict, every=0.0)
    elif then == "release":
        mine.release(finished=False)
    elif then == "finish":
        mine.release(finished=True)


@pytest.mark.parametrize("then", ["die", "beat", "release", "finish"])
def test_a_kill_at_any_moment_of_a_claim_lets_the_next_one_have_it_at_once(then, tmp_path):
    before = claim(tmp_path / "dry")
    before.release(finished=False)
    calls = calls_of(claim_and, tmp_path, tmp_path / "dry", then)
    numbers = []
    for number in range(len(calls)):
        folder = tmp_path / str(number)
        claim(folder).release(finished=False)  # somebody had it before
        assert finish(start(dies_in, claim_and, number, folder, then)) == KILLED
        assert state_of(folder) in ("free", "lost")
        mine = claim(folder)
        numbers.append(mine.number)
        assert holder_of(folder).pid == os.getpid()
        mine.release(finished=True)
        assert list(folder.iterdir()) == []
    assert set(numbers) <= {1, 2, 3}
    assert {2, 3} <= set(numbers)


def test_a_run_that_is_killed_before_every_system_call_of_its_end_ends_as_undisturbed(source, tmp_path):
    """From the last state on: test images, weights, record, the states and the claim that go."""
    run, place = Run(tiny(epochs=1, ema_decay=0.9), 0), Place(source, tmp_path / "out", "cpu", 0)
    expected = undisturbed(run, place)
    until_state(run, place)
    kept = tmp_path / "kept"
    shutil.copytree(place.out, kept)
    number, codes = 0, []
    while not codes or codes[-1] == KILLED:
        shutil.rmtree(place.out)
        shutil.copytree(kept, place.out)
        codes.append(finish(start(trains_until, run, place, number)))
        if record_at(run, place) is None:
            assert finish(start(trains_paced, run, place, 0.0)) == 0
        else:
            assert without_times(record_at(run, place)) == without_times(expected)
            finish(start(trains_paced, run, place, 0.0))
        assert_same(run, place, expected)
        number += 1
    assert number > 30


def until_state(run, place):
    """Trains a run up to the state of its last epoch's end, and is killed."""
    number = 0
    while True:
        assert finish(start(trains_until, run, place, number)) == KILLED
        states = pausing.states(place.folder_of(run))
        if states and pausing.read_course(states[0]).update == pausing.read_course(states[0]).updates:
            return
        number += 1
