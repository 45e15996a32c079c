"""A run is claimed by one process at a time, and by the next one as soon as that one is gone."""

import errno
import json
import os
from pathlib import Path
import subprocess
import sys
from time import monotonic, sleep

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit import claims
from dcvit.claims import BEAT, STALE, Held, TakenOver, claim, holder_of, state_of
from tests.helpers import ROOT, environment, python

HERE = claims._machine()
ELSEWHERE = ("another", "boot", "namespace")


def on(monkeypatch, machine):
    """This process is on that machine from now on."""
    monkeypatch.setattr(claims, "_machine", lambda: machine)


def grow_old(folder, seconds):
    """Turns the clock of all claims back."""
    for path in folder.glob("claim-*"):
        written = path.stat().st_mtime
        os.utime(path, (written - seconds, written - seconds))


def rewritten(folder, **changes):
    """The newest claim says something else."""
    path = max(folder.glob("claim-*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def dead():
    """The number and beginning of a process that has just ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = claims._start_of(child.pid)
    child.communicate(b"\n")
    assert claims._start_of(child.pid) is None
    return child.pid, started


# --- one after the other -------------------------------------------------------------------


def test_a_run_that_nobody_claimed_is_free(tmp_path):
    assert holder_of(tmp_path) is None
    assert holder_of(tmp_path / "nothing") is None
    assert state_of(tmp_path / "nothing") == "free"


def test_a_claim_says_who_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    mine = claim(tmp_path / "a" / "run")
    holder = holder_of(tmp_path / "a" / "run")
    assert (holder.number, holder.pid, holder.alive, holder.released) == (1, os.getpid(), True, False)
    assert (holder.host, holder.boot, holder.pid_namespace) == HERE
    assert str(holder) == f"process {os.getpid()} on {HERE[0]}, job 17"
    assert 0 <= holder.age < 60
    assert names(mine.folder) == ["claim-0001.json"]
    assert (mine.folder / "claim-0001.json").stat().st_mode & 0o777 == 0o644


def test_what_is_held_can_not_be_claimed(tmp_path):
    claim(tmp_path)
    with pytest.raises(Held, match=rf"^process {os.getpid()} on .* is at it$") as caught:
        claim(tmp_path)
    assert caught.value.holder.number == 1
    assert state_of(tmp_path) == "held"
    assert names(tmp_path) == ["claim-0001.json"]


def test_after_a_release_numbers_go_up(tmp_path):
    for number in range(1, 5):
        mine = claim(tmp_path)
        assert mine.number == number
        mine.release(finished=False)
        assert state_of(tmp_path) == "free"
        assert holder_of(tmp_path).released
    assert len(names(tmp_path)) == 4


def test_of_a_finished_run_no_claim_is_left(tmp_path):
    claim(tmp_path).release(finished=False)
    mine = claim(tmp_path)
    (tmp_path / ".claim-0003.json.abc").touch()  # of one that was killed
    (tmp_path / ".now.abc").touch()
    mine.release(finished=True)
    assert names(tmp_path) == []
    assert state_of(tmp_path) == "free"


def test_more_claims_than_the_name_has_digits(tmp_path):
    claim(tmp_path).release(finished=False)
    (tmp_path / "claim-0001.json").rename(tmp_path / "claim-9999.json")
    assert claim(tmp_path).number == 10_000
    assert holder_of(tmp_path).number == 10_000


def test_other_files_are_no_claims(tmp_path):
    for name in (
        "claim-1.json",
        "claim-0002.json.bak",
        ".claim-0003.json.x",
        "claim-abcd.json",
        "xclaim-0004.json",
    ):
        (tmp_path / name).write_text("{}")
    assert holder_of(tmp_path) is None
    assert claim(tmp_path).number == 1


# --- dead or alive -------------------------------------------------------------------------


def test_a_dead_process_on_this_machine_is_replaced_at_once(tmp_path, dead):
    claim(tmp_path)
    rewritten(tmp_path, pid=dead[0], started=dead[1])
    assert holder_of(tmp_path).alive is False
    assert state_of(tmp_path) == "lost"
    assert claim(tmp_path).number == 2


def test_another_process_with_the_number_of_the_dead_one_does_not_hold_its_claim(tmp_path):
    claim(tmp_path)
    rewritten(tmp_path, started="1")
    assert holder_of(tmp_path).alive is False
    assert claim(tmp_path).number == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_zombie_holds_nothing(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim(tmp_path)
    rewritten(tmp_path, pid=child.pid, started=claims._start_of(child.pid))
    assert state_of(tmp_path) == "held"
    child.kill()
    end = monotonic() + 30
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert monotonic() < end
        sleep(0.01)
    try:  # nobody has asked for its exit code yet
        assert state_of(tmp_path) == "lost"
        assert claim(tmp_path).number == 2
    finally:
        child.communicate()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_beginning_of_a_process_is_read_behind_its_name(monkeypatch):
    """A process may call itself what it likes."""
    stat = f"7 (a) S ) Z) {'S'} " + " ".join(map(str, range(4, 52)))
    monkeypatch.setattr(claims, "_read", lambda path: stat)
    assert claims._start_of(7) == "22"  # field 22 of proc(5)


def test_without_proc_a_process_is_told_by_its_number(monkeypatch, dead):
    monkeypatch.setattr(claims, "_read", lambda path: "")
    monkeypatch.setattr(claims, "Path", lambda path: Path("/nothing"))
    assert claims._start_of(os.getpid()) == ""
    assert claims._start_of(dead[0]) is None


@pytest.mark.parametrize("part", range(3), ids=["host", "boot", "namespace"])
def test_a_process_number_means_nothing_on_another_machine(part, tmp_path, monkeypatch, dead):
    """A container, a machine of the same name, or one that was started anew."""
    claim(tmp_path)
    rewritten(tmp_path, pid=dead[0], started=dead[1])
    on(monkeypatch, tuple("other" if index == part else each for index, each in enumerate(HERE)))
    assert holder_of(tmp_path).alive is True
    with pytest.raises(Held):
        claim(tmp_path)


@pytest.mark.parametrize(
    ("silent", "state"),
    [(0, "held"), (STALE - 30, "held"), (STALE + 30, "lost"), (1e6, "lost"), (-3600, "held")],
)
def test_on_another_machine_ten_minutes_of_silence_count(silent, state, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        on(patch, ELSEWHERE)
        claim(tmp_path)
    grow_old(tmp_path, silent)
    assert state_of(tmp_path) == state
    assert holder_of(tmp_path).alive is (True if state == "held" else None)
    if state == "lost":
        assert claim(tmp_path).number == 2
    else:
        with pytest.raises(Held):
            claim(tmp_path)


@given(age=st.floats(-1e6, 1e6))
def test_a_living_process_of_this_machine_holds_its_claim_whatever_clocks_say(age, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    claim(folder)
    grow_old(folder, age)
    assert state_of(folder) == "held"


def test_ages_do_not_depend_on_the_clock_of_this_machine(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        on(patch, ELSEWHERE)
        claim(tmp_path)
    monkeypatch.setattr(claims, "time", lambda: 1e10)
    assert state_of(tmp_path) == "held"


def test_who_may_only_look_takes_his_own_clock(tmp_path, monkeypatch):
    claim(tmp_path)
    grow_old(tmp_path, 100)

    def refuse(**_):
        raise PermissionError

    monkeypatch.setattr(claims.tempfile, "mkstemp", refuse)
    assert 99 < holder_of(tmp_path).age < 200


# --- signs of life -------------------------------------------------------------------------


def test_a_sign_of_life_renews_the_claim_and_tells_the_progress(tmp_path):
    mine = claim(tmp_path)
    grow_old(tmp_path, 1000)
    mine.beat(lambda: {"epoch": 3}, every=0.0)
    holder = holder_of(tmp_path)
    assert holder.age < 60
    assert holder.progress == {"epoch": 3}
    mine.beat(every=0.0)
    assert holder_of(tmp_path).progress == {"epoch": 3}
    assert names(tmp_path) == ["claim-0001.json"]


def test_between_two_signs_of_life_nothing_is_written_or_asked(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(claims, "monotonic", lambda: now[0])
    mine = claim(tmp_path)
    mine.renewed = 100.0

    def never():
        raise AssertionError

    now[0] += BEAT - 0.1
    mine.beat(never)
    now[0] += 0.2
    mine.beat(lambda: {"epoch": 1})
    assert mine.renewed == now[0]
    assert holder_of(tmp_path).progress == {"epoch": 1}
    mine.beat(never)


def taken_over(folder, monkeypatch):
    """A claim, and the one of another machine that came after a long silence."""
    mine = claim(folder)
    grow_old(folder, STALE + 60)
    with monkeypatch.context() as patch:
        on(patch, ELSEWHERE)
        return mine, claim(folder)


def test_one_that_was_silent_stops_at_its_next_sign_of_life(tmp_path, monkeypatch):
    mine, theirs = taken_over(tmp_path, monkeypatch)
    assert (mine.number, theirs.number) == (1, 2)
    told = r"was taken over by another process \(claim 2 after claim 1\)"
    with pytest.raises(TakenOver, match=told):
        mine.beat(every=0.0)
    with pytest.raises(TakenOver, match=told):
        mine.require()
    theirs.require()
    theirs.beat(every=0.0)


@pytest.mark.parametrize("finished", [False, True])
def test_one_that_was_taken_over_releases_nothing(finished, tmp_path, monkeypatch):
    mine, _ = taken_over(tmp_path, monkeypatch)
    mine.release(finished=finished)
    assert holder_of(tmp_path).number == 2
    assert not holder_of(tmp_path).released


def test_one_whose_run_was_finished_by_another_process_stops(tmp_path, monkeypatch):
    mine, theirs = taken_over(tmp_path, monkeypatch)
    theirs.release(finished=True)
    with pytest.raises(TakenOver):
        mine.require()
    mine.release(finished=False)
    assert names(tmp_path) == []


# --- files ---------------------------------------------------------------------------------

GOOD = dict(host="a", boot="b", pid_namespace="c", pid=1, started="2", job="", released=False, progress={})
STRANGE = {
    "empty": "",
    "cut off": json.dumps(GOOD)[:40],
    "no object": "[1]",
    "a field too many": json.dumps({**GOOD, "more": 1}),
    "a field too few": json.dumps({name: value for name, value in GOOD.items() if name != "job"}),
    "words for a number": json.dumps({**GOOD, "pid": "1"}),
    "words for a flag": json.dumps({**GOOD, "released": "no"}),
    "words for progress": json.dumps({**GOOD, "progress": "much"}),
    "no text": b"\xff\xfe",
    "a number": "1e999",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", STRANGE)
def test_of_a_claim_that_can_not_be_read_only_the_age_counts(name, tmp_path):
    content = STRANGE[name]
    path = tmp_path / "claim-0007.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert state_of(tmp_path) == "held"
    with pytest.raises(Held, match="process 0 on an unknown machine is at it"):
        claim(tmp_path)
    grow_old(tmp_path, STALE + 60)
    assert claim(tmp_path).number == 8


def test_a_folder_in_place_of_a_claim_is_borne(tmp_path):
    (tmp_path / "claim-0001.json").mkdir()
    assert state_of(tmp_path) == "held"
    grow_old(tmp_path, STALE + 60)
    assert claim(tmp_path).number == 2


@pytest.mark.parametrize("gone", ["the file", "its folder"])
def test_a_claim_that_goes_between_two_looks_is_none(gone, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    claim(folder)
    original = claims._numbers

    def then_gone(at):
        found = original(at)
        for path in folder.iterdir():
            path.unlink()
        if gone == "its folder":
            folder.rmdir()
        return found

    monkeypatch.setattr(claims, "_numbers", then_gone)
    assert holder_of(folder) is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_links_a_claim_is_made_all_the_same(code, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    assert claim(tmp_path).number == 1
    assert holder_of(tmp_path).pid == os.getpid()
    with pytest.raises(Held):
        claim(tmp_path)
    assert claims._create(tmp_path / "claim-0001.json", "{}") is False
    assert names(tmp_path) == ["claim-0001.json"]


def test_of_two_at_once_one_makes_the_claim(tmp_path):
    assert claims._create(tmp_path / "claim-0001.json", "first") is True
    assert claims._create(tmp_path / "claim-0001.json", "second") is False
    assert (tmp_path / "claim-0001.json").read_text() == "first"
    assert names(tmp_path) == ["claim-0001.json"]


def test_a_link_whose_answer_was_lost_counts(tmp_path, monkeypatch):
    """NFS may make a link, lose the answer, and be asked again."""
    original = os.link

    def twice(name, path):
        original(name, path)
        original(name, path)

    monkeypatch.setattr(os, "link", twice)
    assert claims._create(tmp_path / "claim-0001.json", "mine") is True


def test_one_who_claims_while_a_run_is_tidied_up_is_just_late(tmp_path, monkeypatch):
    """Its temporary file is removed before it can be linked."""
    original, calls = os.link, []

    def removed(name, path):
        calls.append(name)
        if len(calls) == 1:
            os.unlink(name)
        original(name, path)

    monkeypatch.setattr(os, "link", removed)
    assert claim(tmp_path).number == 1
    assert len(calls) == 2


def test_a_full_disk_leaves_no_half_of_a_claim(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            claim(tmp_path)
    assert names(tmp_path) == []


def test_a_claim_needs_no_torch():
    code = "import sys, dcvit.claims, dcvit.stopping, dcvit.layout; assert 'torch' not in sys.modules"
    subprocess.run(python("-c", code), env=environment(), cwd=ROOT, check=True)
