"""Runs in processes of their own: they have loading processes, too, and hear a signal however early it comes."""

from time import monotonic

import pytest

from dcvit.launch import make_all
from dcvit.runs import Place, Run, Watcher
from dcvit.sources import from_folder
from tests.helpers import image_folder, tiny

RUNS = [Run(tiny(), 0), Run(tiny(), 1)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


def test_runs_side_by_side_have_loading_processes(source, tmp_path):
    place = Place(source, tmp_path / "out", "cpu", 1)
    outcomes = make_all(RUNS, place, jobs=2, watcher=Watcher())
    assert [outcome.problem for outcome in outcomes.values()] == ["", ""]


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_signal_before_the_processes_are_ready_is_no_failure(seconds, source, tmp_path):
    """Python begins, and imports torch for seconds; told to stop meanwhile, they have nothing to save."""
    asked = []

    def stopped():
        asked.append(monotonic())
        return "SIGTERM" if len(asked) > len(RUNS) and asked[-1] > asked[0] + seconds else ""

    place = Place(source, tmp_path / "out", "cpu", 0)
    outcomes = make_all(RUNS, place, jobs=2, watcher=Watcher(), stopped=stopped)
    assert {outcome.kind for outcome in outcomes.values()} <= {"paused", "stopped"}, outcomes
