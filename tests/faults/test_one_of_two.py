"""Runs of two processes of which one alone meets something: the user hears what it was, soon, and nobody waits."""

import json
import os
import signal
from time import sleep

import pytest

from dcvit import executing, loop, pausing
from dcvit.claims import TakenOver
from dcvit.errors import DataError
from dcvit.runs import Place
from tests.faults import child
from tests.faults.test_ranks_die import ALONE, RUN, executed, expected, record_at, source  # noqa: F401
from tests.helpers import without_times

MEMBER = executing._member


def at_update(rank, happens):
    """Something that happens in one of the processes, when it comes to an update, each time."""
    child.careful()
    original = loop.train_step

    def eventful(state, *rest, **options):
        if options["update"] == child.FATAL and int(os.environ["RANK"]) == rank:
            happens()
        original(state, *rest, **options)

    loop.train_step = eventful


def sees_a_damaged_image(run, place):
    """The second process can't read an image, and could not the next time."""

    def happens():
        raise DataError("images/7.png can't be read any more")

    at_update(1, happens)
    return MEMBER(run, place)


def fails(run, place):
    """The second process has a bug."""

    def happens():
        raise ZeroDivisionError("of the second process")

    at_update(1, happens)
    return MEMBER(run, place)


def is_taken_over(run, place):
    """The first process hears that another command has its run, the first time."""

    def happens():
        mark = place.out / "happened"
        if not mark.exists():
            mark.touch()
            raise TakenOver("the folder was taken over")

    at_update(0, happens)
    return MEMBER(run, place)


def stops_its_agent(run, place):
    """The agent is asked to stop when the second process has come to an update, the first time."""

    def happens():
        mark = place.out / "happened"
        if not mark.exists():
            mark.touch()
            os.kill(os.getppid(), signal.SIGTERM)
            sleep(2)  # until it has told the processes

    at_update(1, happens)
    return MEMBER(run, place)


@pytest.fixture
def place(source, tmp_path):  # noqa: F811
    place = Place(source, tmp_path / "out", "cpu", 0, gpus_per_run=2, save_every=0.0)
    place.out.mkdir()
    return place


@pytest.mark.parametrize(
    ("member", "kind", "problem"),
    [
        (sees_a_damaged_image, "environment", "images/7.png can't be read any more"),
        (fails, "failed", "ZeroDivisionError: of the second process"),
    ],
)
def test_what_one_found_is_what_the_user_hears_and_it_is_not_tried_again(
    member, kind, problem, place, tmp_path
):
    told = executed(place, member, tmp_path)
    assert told["kind"] == kind
    assert told["problem"].startswith(problem)
    assert told["seconds"] < 60
    facts = json.loads((place.folder_of(RUN) / "outcome.json").read_text())
    assert (facts["kind"], facts["problem"]) == (kind, told["problem"])


def test_after_the_first_one_was_taken_over_the_run_ends_to_the_bit(place, expected, tmp_path):  # noqa: F811
    told = executed(place, is_taken_over, tmp_path)
    assert (place.out / "happened").exists()
    assert told["record"], told
    assert told["seconds"] < 60
    assert without_times(record_at(place)) == without_times(expected)


def test_two_processes_that_are_told_to_stop_go_on_to_the_bit(place, expected, tmp_path):  # noqa: F811
    told = executed(place, stops_its_agent, tmp_path)
    assert (told["kind"], told["record"]) == ("paused", False), told
    course = pausing.read_course(pausing.find(place.folder_of(RUN)))
    assert child.FATAL <= course.update < course.updates
    assert executed(place, stops_its_agent, tmp_path)["record"]
    assert without_times(record_at(place)) == without_times(expected)
