"""How one run ends, and what it leaves in its folder for whoever comes next."""

from dataclasses import replace
import errno
import json
import os
import signal

import pytest
import torch

from dcvit import executing, ledger, loop, pausing
from dcvit.checkpoint import save_state
from dcvit.claims import claim, holder_of, state_of
from dcvit.errors import DataError, Diverged, EnvironmentProblem, Paused, RankLost
from dcvit.executing import execute
from dcvit.pausing import Course
from dcvit.runs import Outcome, Place, Run
from dcvit.sources import from_folder
from dcvit.stopping import ASKING
from tests.helpers import image_folder, tiny, without_times

RUN = Run(tiny(), 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture
def place(source, tmp_path):
    return Place(source, tmp_path / "out", "cpu", 0)


def train(place, stopped=str):
    return execute(RUN, place, lambda progress: None, stopped)


def names(place):
    return {path.name for path in place.folder_of(RUN).iterdir()}


def raising(monkeypatch, error):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr("dcvit.training.fit", fit)


def told(place):
    path = place.folder_of(RUN) / "outcome.json"
    return json.loads(path.read_text()) if path.exists() else None


# --- how it ends ---------------------------------------------------------------------------


def test_a_run_leaves_its_record_and_weights_and_nothing_else(place):
    outcome = train(place)
    assert outcome == Outcome(record=outcome.record)
    assert names(place) == {"record.json", *outcome.record.weights}


KINDS = [
    (Diverged("at update 3"), "diverged"),
    (DataError("no images"), "environment"),
    (EnvironmentProblem("no device"), "environment"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "environment"),
    (OSError(errno.EROFS, "Read-only file system"), "environment"),
    (OSError(errno.ENOENT, "No such file"), "failed"),
    (ValueError("wrong"), "failed"),
    (RuntimeError("CUDA error"), "failed"),
]


@pytest.mark.parametrize(("error", "kind"), KINDS, ids=lambda value: type(value).__name__)
def test_what_went_wrong_stands_in_the_folder(error, kind, place, monkeypatch):
    raising(monkeypatch, error)
    outcome = train(place)
    assert outcome.kind == kind
    assert told(place) == {"kind": kind, "problem": outcome.problem}


def test_a_pause_leaves_no_outcome(place, monkeypatch):
    raising(monkeypatch, Paused("paused after 3 of 9 updates"))
    assert train(place).kind == "paused"
    assert told(place) is None


def test_what_went_wrong_before_is_forgotten_when_it_is_tried_again(place, monkeypatch):
    with monkeypatch.context() as patch:
        raising(patch, ValueError("wrong"))
        train(place)
    assert {"error.txt", "outcome.json"} <= names(place)
    (place.folder_of(RUN) / "diverged.safetensors").touch()
    with monkeypatch.context() as patch:
        raising(patch, Paused("paused"))
        train(place)
    assert not names(place) & {"error.txt", "outcome.json", "diverged.safetensors"}
    record = train(place).record
    assert names(place) == {"record.json", *record.weights}


@pytest.mark.parametrize(
    "error",
    [error for error, _ in KINDS] + [Paused("paused"), RankLost("lost"), KeyboardInterrupt()],
    ids=repr,
)
def test_however_it_ends_the_claim_is_released(error, place, monkeypatch):
    raising(monkeypatch, error)
    try:
        train(place)
    except (RankLost, KeyboardInterrupt):
        assert isinstance(error, (RankLost, KeyboardInterrupt))
    assert state_of(place.folder_of(RUN)) == "free"
    assert holder_of(place.folder_of(RUN)).released


def test_during_a_run_it_is_claimed(place, monkeypatch):
    seen = []

    def fit(*_, claim, **__):
        seen.append((state_of(place.folder_of(RUN)), claim.number))
        raise Paused("paused")

    monkeypatch.setattr("dcvit.training.fit", fit)
    for _ in range(3):
        train(place)
    assert seen == [("held", 1), ("held", 2), ("held", 3)]


def test_one_that_is_held_is_not_touched(place, monkeypatch):
    raising(monkeypatch, AssertionError())
    claim(place.folder_of(RUN))
    (place.folder_of(RUN) / "error.txt").touch()
    outcome = train(place)
    assert outcome.kind == "held"
    assert outcome.problem.startswith(f"run {RUN.id} is being trained: process {os.getpid()} on ")
    assert names(place) == {"claim-0001.json", "error.txt"}


def test_one_that_was_taken_over_lets_the_other_one_go_on(place, monkeypatch):
    """Another machine makes claim 2 while this process is silent; this one writes nothing more."""
    original = loop.train_step

    def silent(state, *rest, **options):
        original(state, *rest, **options)
        if options["update"] == 1:
            facts = json.loads((place.folder_of(RUN) / "claim-0001.json").read_text())
            theirs = json.dumps({**facts, "host": "another"})
            (place.folder_of(RUN) / "claim-0002.json").write_text(theirs)

    monkeypatch.setattr(loop, "train_step", silent)
    outcome = train(place)
    assert outcome.kind == "held"
    assert "was taken over by another process" in outcome.problem
    assert names(place) == {"claim-0001.json", "claim-0002.json"}
    assert not holder_of(place.folder_of(RUN)).released


def test_one_that_another_process_has_finished_meanwhile_is_not_trained_again(place, monkeypatch):
    record = train(place).record
    raising(monkeypatch, AssertionError())
    assert train(place).record == record
    assert names(place) == {"record.json", *record.weights}


def test_states_beside_a_record_go_when_somebody_comes_by(place):
    """A kill between the writing of the record and the removal of the states leaves them."""
    record = train(place).record
    course = Course(
        maker={}, update=6, updates=6, evolution=[], best={}, started="", seconds=1.0, epoch_seconds=0.0
    )
    save_state(place.folder_of(RUN), {}, course)
    assert train(place).record == record
    assert pausing.states(place.folder_of(RUN)) == []


def test_a_record_that_can_not_be_used_is_a_failure_that_names_it(place):
    train(place)
    path = place.folder_of(RUN) / "record.json"
    path.write_text(path.read_text()[:100])
    outcome = train(place)
    assert outcome.kind == "failed"
    assert f"{path} is cut off or damaged" in outcome.problem
    assert path.exists()


def test_the_number_of_threads_is_as_before(place, monkeypatch):
    torch.set_num_threads(2)
    try:
        threads = []

        def fit(*_, **__):
            threads.append(torch.get_num_threads())
            raise KeyError

        monkeypatch.setattr("dcvit.training.fit", fit)
        train(place)
        assert threads == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_device_that_is_not_there_is_a_problem_of_the_environment(place):
    outcome = execute(RUN, replace(place, device="cuda:99"), lambda progress: None)
    assert outcome.kind == "environment"
    assert "cuda" in outcome.problem


# --- told to stop --------------------------------------------------------------------------


def test_one_that_is_told_to_stop_saves_its_state_and_goes_on_to_the_bit(place, source, tmp_path):
    expected = train(replace(place, out=tmp_path / "undisturbed")).record
    asked = iter(["", "", "SIGTERM"])
    outcome = train(place, lambda: next(asked, "SIGTERM"))
    assert outcome == Outcome(
        problem="paused after 3 of 6 updates (SIGTERM); its state is saved", kind="paused"
    )
    assert pausing.read_course(pausing.find(place.folder_of(RUN))).update == 3
    assert without_times(train(place).record) == without_times(expected)


@pytest.mark.parametrize("looks", range(20))
def test_wherever_it_is_told_to_stop_it_goes_on_to_the_bit(looks, place, tmp_path_factory, undisturbed):
    """After so many looks: after an update, between test batches, between epochs."""
    asked = []

    def stopped():
        asked.append(1)
        return "SIGTERM" if len(asked) > looks else ""

    outcome = train(place, stopped)
    if outcome.record is None:
        assert outcome.kind == "paused"
        assert "(SIGTERM); its state is saved" in outcome.problem
        outcome = train(place)
    assert without_times(outcome.record) == without_times(undisturbed)
    assert names(place) == {"record.json", *outcome.record.weights}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    return train(Place(source, tmp_path_factory.mktemp("undisturbed"), "cpu", 0)).record


def test_two_processes_of_one_run_are_started_where_more_than_one_gpu_is_asked_for(place, monkeypatch):
    called = []

    def watched(*arguments, **options):
        called.append(arguments[:2])
        return Outcome(problem="why", kind="failed")

    monkeypatch.setattr(executing, "_watched", watched)
    two = replace(place, gpus_per_run=2)
    assert train(two).problem == "why"
    assert called == [(RUN, two)]


def test_listening_is_over_after_a_run(place):
    before = {number: signal.getsignal(number) for number in ASKING}
    train(place)
    assert {number: signal.getsignal(number) for number in ASKING} == before
    assert ledger.find(place.out, RUN.recipe, 0, place.source.fingerprint) is not None
