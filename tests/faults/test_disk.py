"""Disks that are full or read-only, and a log that can't be written."""

from contextlib import contextmanager
from dataclasses import replace
import errno
import os
import subprocess

import pytest

from dcvit import checkpoint, claims, files, keeping, ledger, loop, pausing, state
from dcvit.claims import claim, holder_of, state_of
from dcvit.executing import execute
from dcvit.runs import Place, Run
from dcvit.sources import from_folder
from tests.helpers import ROOT, environment, image_folder, python, tiny, without_times

RUN = Run(tiny(), 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture
def place(source, tmp_path):
    return Place(source, tmp_path / "out", "cpu", 0, save_every=0.0)


@pytest.fixture
def expected(source, tmp_path):
    """The record of a run that nobody disturbs."""
    calm = Place(source, tmp_path / "undisturbed", "cpu", 0)
    return execute(RUN, calm, lambda progress: None).record


@pytest.fixture
def often(monkeypatch):
    """States after every update."""
    for module in (loop, state):
        monkeypatch.setattr(module, "READ_EVERY", 1)
    monkeypatch.setattr(keeping, "SHARE", float("inf"))


def train(place):
    return execute(RUN, place, lambda progress: None)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def mounted(folder, *options):
    """Something mounted at a folder; skips where this process may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs a file system of its own: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def small_disk(folder):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    with mounted(folder, "-t", "tmpfs", "-o", "size=4m", "none"):
        yield


def fill(folder, *, leave):
    """Fills a disk but for so many bytes."""
    left = os.statvfs(folder)
    (folder / "filler").write_bytes(b"x" * max(left.f_bavail * left.f_frsize - leave, 0))


# --- full ----------------------------------------------------------------------------------


def test_a_disk_that_fills_up_and_is_emptied_again_costs_nothing_but_time(place, expected, often, capfd):
    """Room for a claim and no state: the run goes on to its end, where the weights find no place."""
    with small_disk(place.out):
        fill(place.out, leave=20_000)
        outcome = train(place)
        assert outcome.kind == "environment"
        assert f"{place.out} can't be written (No space left on device): make room" in outcome.problem
        told = capfd.readouterr().err
        for update in range(1, 7):
            assert f"note: the state of update {update} could not be saved in {place.folder_of(RUN)}" in told
        left = {path.name.split("-")[0] for path in place.folder_of(RUN).iterdir()}
        assert left == {"claim", "outcome.json"}, "nothing half-written"
        (place.out / "filler").unlink()
        assert without_times(train(place).record) == without_times(expected)


def test_on_a_disk_without_any_room_a_run_says_so(place):
    with small_disk(place.out):
        fill(place.out, leave=0)
        outcome = train(place)
        assert outcome.kind == "environment"
        assert "No space left on device" in outcome.problem
        assert state_of(place.folder_of(RUN)) == "free"


def test_no_room_for_one_state_is_a_note_and_the_next_one_is_saved(
    place, expected, often, monkeypatch, capsys
):
    original, refused = checkpoint.write_atomically, []

    def sometimes(path, write):
        if path.name.startswith(("state-000000002", "state-000000003")):
            refused.append(path.name)
            full()
        original(path, write)

    monkeypatch.setattr(checkpoint, "write_atomically", sometimes)
    assert without_times(train(place).record) == without_times(expected)
    told = capsys.readouterr().err
    assert told.count("could not be saved") == len(refused) >= 2
    assert "note: the state of update 3 could not be saved" in told
    assert "the state of update 4" not in told


def test_no_room_for_the_record_loses_no_update(place, expected, often, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "write_text", full)
        outcome = train(place)
    assert (outcome.record, outcome.kind) == (None, "environment")
    folder = place.folder_of(RUN)
    assert not (folder / "record.json").exists()
    assert pausing.read_course(pausing.find(folder)).update == 6
    made = []
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: made.append(1))
    assert without_times(train(place).record) == without_times(expected)
    assert made == []


def test_no_room_for_a_sign_of_life_costs_no_run(place, expected, monkeypatch):
    monkeypatch.setattr(claims.Claim.beat, "__kwdefaults__", {"every": 0.0})
    beats = []

    def no_room(path, text):
        beats.append(path)
        full()

    original = files.write_text
    monkeypatch.setattr(
        claims,
        "write_text",
        lambda path, text: no_room(path, text) if '"released": false' in text else original(path, text),
    )
    assert without_times(train(place).record) == without_times(expected)
    assert len(beats) > 3


def test_a_sign_of_life_without_room_still_counts(tmp_path, monkeypatch):
    mine = claim(tmp_path)
    path = tmp_path / "claim-0001.json"
    os.utime(path, (1, 1))
    monkeypatch.setattr(claims, "write_text", full)
    mine.beat(every=0.0)
    assert holder_of(tmp_path).age < 60


def test_whether_a_run_is_held_can_be_seen_on_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk"):
        mine = claim(tmp_path / "disk")
        fill(tmp_path / "disk", leave=0)
        assert state_of(tmp_path / "disk") == "held"
        assert abs(holder_of(tmp_path / "disk").age) < 60
        assert mine.number == 1
        assert {path.name for path in (tmp_path / "disk").iterdir()} == {"claim-0001.json", "filler"}


def test_when_told_to_stop_on_a_full_disk_no_state_is_claimed_to_be_saved(place, often, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    outcome = execute(RUN, place, lambda progress: None, lambda: "SIGTERM")
    assert outcome.kind == "environment"
    assert "make room" in outcome.problem


# --- read-only -----------------------------------------------------------------------------


@contextmanager
def read_only(folder):
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a folder read-only")
    with mounted(folder, "--bind", folder):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        if os.access(folder, os.W_OK):
            pytest.skip("this system mounts nothing read-only")
        yield


def test_a_read_only_folder_is_named_before_anything_is_trained(place, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(loop, "train_step", never)
    with read_only(place.out):
        outcome = train(place)
    assert outcome.kind == "environment"
    assert outcome.problem.startswith(f"{place.out} can't be written (Read-only file system): ")
    assert "--out" in outcome.problem


def test_a_run_in_a_read_only_folder_can_be_looked_at(place):
    folder = place.folder_of(RUN)
    claim(folder)
    with read_only(place.out):
        assert state_of(folder) == "held"
        assert holder_of(folder).pid == os.getpid()


def test_a_folder_that_becomes_read_only_in_mid_run_is_named_at_the_end(place, expected, often, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", refuse)
        outcome = train(place)
    assert outcome.kind == "environment"
    assert "Read-only file system" in outcome.problem
    assert without_times(train(place).record) == without_times(expected)


# --- the log -------------------------------------------------------------------------------

IN_A_LOG = """
import sys
from pathlib import Path
from dcvit.display import Display
from dcvit.launch import make_all
from dcvit.making import say
from dcvit.runs import Place, Run
from dcvit.sources import from_folder
from dcvit import checkpoint
from tests.helpers import tiny

def main():
    runs = [Run(tiny(), 0), Run(tiny(), 1)]
    say("a line")
    place = Place(from_folder(Path(sys.argv[1])), Path(sys.argv[2]), "cpu", 0)
    if sys.argv[3] == "damage":
        folder = place.folder_of(runs[0])
        folder.mkdir(parents=True)
        (folder / "state-000000001-0.safetensors").write_bytes(b"torn")
    with Display({run: run.id for run in runs}) as display:
        outcomes = make_all(runs, place, jobs=1, watcher=display.watcher)
    assert all(outcome.record for outcome in outcomes.values()), outcomes

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_log_that_can_not_be_written_costs_no_run(both, source, expected, tmp_path):
    """In the second case what is said on stderr (of a damaged state) has no place either."""
    (tmp_path / "program.py").write_text(IN_A_LOG)
    with open("/dev/full", "w") as log:
        done = subprocess.run(
            python(tmp_path / "program.py", source.root, tmp_path / "out", "damage" if both else ""),
            env=environment(),
            cwd=ROOT,
            stdout=log,
            stderr=log if both else subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    place = Place(source, tmp_path / "out", "cpu", 0)
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        assert ledger.find(place.out, RUN.recipe, seed, source.fingerprint) is not None
    record = ledger.find(place.out, RUN.recipe, 0, source.fingerprint)
    assert replace(without_times(record), environment={}) == replace(without_times(expected), environment={})
    if not both:
        assert done.stderr.count("can't be written (No space left on device) and is dropped") == 1
