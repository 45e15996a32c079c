"""The commands themselves, told to stop: state saved, exit code 75, nobody left behind, and on to the same record."""

from dataclasses import replace
import os
from pathlib import Path
import signal
import subprocess
from time import monotonic, sleep

import pytest

from dcvit import ledger, pausing
from dcvit.claims import state_of
from dcvit.errors import OK, RESUMABLE
from dcvit.runs import Place, Run, all_runs
from dcvit.setting import of_source
from dcvit.sources import digits
from reproductions.table6_resnet50 import TABLE
from tests.faults import child
from tests.faults.child import finish, start
from tests.helpers import ROOT, environment, python, without_times

IMAGES = ("--train-images", "192", "--test-images", "20")


def runs_of_table_6():
    source = digits()
    setting = of_source("smoke", source, train_images=192, test_images=20)
    twins = setting.twins(cell.recipe for cell in TABLE.cells)
    return all_runs(twins.values(), (0,)), source


def until(true, *, seconds=60.0):
    end = monotonic() + seconds
    while not true():
        assert monotonic() < end, "it did not happen in time"
        sleep(0.02)


def group_of(pid):
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just gone
            continue
        if int(group) == pid and state not in "ZX":
            found.append(path.parent.name)
    return found


def record_at(run, place):
    return ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint)


def is_under_way(run, place):
    """Whether a run has done some updates of this call."""
    return state_of(place.folder_of(run)) == "held"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of the two runs that nobody disturbs."""
    runs, source = runs_of_table_6()
    place = Place(source, tmp_path_factory.mktemp("undisturbed"), "cpu", 0)
    both = [start(child.trains, run, place) for run in runs]
    assert [finish(process, seconds=120) for process in both] == [0, 0]
    return {run: record_at(run, place) for run in runs}


def test_a_run_of_one_command_that_is_told_to_stop_thrice_ends_as_undisturbed(undisturbed, tmp_path):
    """The last time by the real command; the others are forks, which need not import torch."""
    (run, *_), source = runs_of_table_6()
    place = Place(source, tmp_path / "out", "cpu", 0)
    argv = ["train", run.id, "--out", str(place.out), "--device", "cpu", *IMAGES]
    done = [0]
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        before = done[-1]
        log = tmp_path / f"{number.name}.log"
        if number == signal.SIGTERM:
            with open(log, "w") as file:
                process = subprocess.Popen(
                    python("-m", "dcvit", *argv),
                    cwd=ROOT,
                    env=environment() | {"PYTHONWARNINGS": "default"},
                    stdout=file,
                    stderr=file,
                )
        else:
            process = start(child.commands, argv, log, 0.1)
        until(lambda: is_under_way(run, place))
        sleep(0.5)
        told = monotonic()
        os.kill(process.pid, number)
        code = process.wait(60) if number == signal.SIGTERM else finish(process)
        assert monotonic() - told < 10
        assert code == RESUMABLE, log.read_text()
        assert f"({number.name}); its state is saved" in log.read_text()
        done.append(pausing.read_course(pausing.find(place.folder_of(run))).update)
        assert done[-1] >= before
        assert state_of(place.folder_of(run)) == "free"
    assert done[-1] > 0
    assert finish(start(child.commands, argv, tmp_path / "log", 0.0)) == OK
    assert f"run {run.id} has its record" in (tmp_path / "log").read_text()
    assert without_times(record_at(run, place)) == without_times(undisturbed[run])
    assert finish(start(child.commands, argv, tmp_path / "log", 0.0)) == OK


def test_a_table_told_to_stop_while_two_processes_run_side_by_side_leaves_none_behind(undisturbed, tmp_path):
    runs, source = runs_of_table_6()
    place = Place(source, tmp_path / "out", "cpu", 0)
    argv = [
        "-m",
        "reproductions.table6_resnet50",
        "--out",
        place.out,
        "--device",
        "cpu",
        "--jobs",
        2,
        *IMAGES,
    ]

    def started(log):
        with open(log, "w") as file:
            return subprocess.Popen(
                python(*argv),
                cwd=ROOT,
                env=environment() | {"PYTHONWARNINGS": "default"},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    process = started(tmp_path / "first.log")
    try:
        until(lambda: any(is_under_way(run, place) for run in runs), seconds=120)
        assert len(group_of(process.pid)) >= 3
        told = monotonic()
        os.kill(process.pid, signal.SIGTERM)
        code = process.wait(60)
        assert monotonic() - told < 10
        text = (tmp_path / "first.log").read_text()
        assert code == RESUMABLE, text
        until(lambda: group_of(process.pid) == [], seconds=5)
        assert "SIGTERM" in text
        assert "FAILED" not in text
        assert all(state_of(place.folder_of(run)) == "free" for run in runs)
        again = started(tmp_path / "second.log")
        assert again.wait(240) == OK, (tmp_path / "second.log").read_text()
    finally:
        for pid in (process.pid, *([again.pid] if "again" in locals() else [])):
            if group_of(pid):
                os.killpg(pid, signal.SIGKILL)
        process.wait()
    for run in runs:
        assert without_times(record_at(run, place)) == without_times(undisturbed[run])


def test_the_two_runs_differ():
    """Else the comparisons above would compare a run with itself."""
    runs, _ = runs_of_table_6()
    assert len({run.id for run in runs}) == len(runs) == 2
    assert isinstance(runs[0], Run)
    assert replace(runs[0], seed=1).id != runs[0].id
