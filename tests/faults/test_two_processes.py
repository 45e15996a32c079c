"""Two who are told to train the same run: one does, the other waits or skips; never both, never neither."""

from collections import Counter
import json
import os
from pathlib import Path
import random
import signal
from time import monotonic, sleep

import pytest

from dcvit import ledger
from dcvit.claims import Held, claim, state_of
from dcvit.runs import Place, Run
from dcvit.sources import from_folder
from tests.faults.child import finish, makes_paced, start, trains_paced
from tests.helpers import image_folder, tiny, without_times

RUN = Run(tiny(epochs=4), 0)  # 12 updates
AFTER = Run(tiny(pretrained=RUN.recipe), 0)  # 6
PACE = 0.05


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture
def place(source, tmp_path):
    return Place(source, tmp_path / "out", "cpu", 0)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """The record of a run that nobody disturbs."""
    calm = Place(source, tmp_path_factory.mktemp("undisturbed"), "cpu", 0)
    assert finish(start(trains_paced, RUN, calm, 0.0)) == 0
    return record_at(RUN, calm)


def record_at(run, place):
    return ledger.find(place.out, run.recipe, run.seed, place.source.fingerprint)


def until(true, *, seconds=30.0):
    end = monotonic() + seconds
    while not true():
        assert monotonic() < end, "it did not happen in time"
        sleep(0.005)


def updates(beats):
    """Who made which updates, in order: (process, update)."""
    lines = beats.read_text().splitlines() if beats.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


# --- claims alone --------------------------------------------------------------------------


def hammers(folder, number, rounds, moments_seed):
    """Claims, says so in a file of its own, checks that nobody else says so, and releases or dies."""
    moments = random.Random(moments_seed)
    inside = Path(folder, "inside")
    mine = None
    wins = 0
    while wins < rounds:
        try:
            mine = claim(Path(folder, "run"))
        except Held:
            sleep(moments.uniform(0, 0.003))
            continue
        with open(Path(folder, "log"), "a", encoding="utf-8") as log:
            log.write(f"{number} {mine.number}\n")
        others = [name for name in os.listdir(inside) if not _dead(name)]
        Path(inside, str(os.getpid())).touch()
        assert others == [], f"{others} hold the claim, too"
        assert state_of(Path(folder, "run")) == "held"
        sleep(moments.uniform(0, 0.002))
        mine.require()
        wins += 1
        if number >= 4 and wins == 5 * (number - 3):
            os.kill(os.getpid(), signal.SIGKILL)
        Path(inside, str(os.getpid())).unlink()
        mine.release(finished=False)


def _dead(pid):
    """Whether a process is gone or a zombie."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_eight_processes_claim_a_run_in_turn_though_some_are_killed(tmp_path):
    (tmp_path / "inside").mkdir()
    begin = monotonic()
    processes = [start(hammers, tmp_path, number, 25, number) for number in range(8)]
    codes = Counter(finish(process) for process in processes)
    assert codes == {0: 4, -9: 4}
    numbers = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1)), "every claim was held once, one after the other"
    assert len(numbers) == 4 * 25 + 5 + 10 + 15 + 20
    assert monotonic() - begin < 60, "dead holders on this machine are not waited for"
    claim(tmp_path / "run").release(finished=True)
    assert os.listdir(tmp_path / "run") == []


def claims_once(folder, answer):
    until(Path(folder, "go").exists)
    try:
        claim(Path(folder, "run"))
        won = True
    except Held:
        won = False
    Path(answer).write_text(json.dumps(won))
    until(Path(folder, "end").exists)


@pytest.mark.parametrize("before", ["nobody", "a dead one"])
def test_of_many_at_once_exactly_one_gets_a_free_run(before, tmp_path):
    if before == "a dead one":
        assert finish(start(claim, tmp_path / "run")) == 0
        assert state_of(tmp_path / "run") == "lost"
    processes = [start(claims_once, tmp_path, tmp_path / f"{number}.json") for number in range(6)]
    (tmp_path / "go").touch()
    answers = [tmp_path / f"{number}.json" for number in range(6)]
    until(lambda: all(path.exists() and path.read_text() for path in answers))
    (tmp_path / "end").touch()
    assert [finish(process) for process in processes] == [0] * 6
    assert sorted(json.loads(path.read_text()) for path in answers) == [False] * 5 + [True]


# --- whole runs ----------------------------------------------------------------------------


def test_of_two_one_trains_and_the_other_is_told_who_does(place, expected, tmp_path):
    beats, answers = tmp_path / "beats", [tmp_path / "first.json", tmp_path / "second.json"]
    first = start(trains_paced, RUN, place, PACE, beats, answers[0])
    until(lambda: updates(beats))
    second = start(trains_paced, RUN, place, PACE, beats, answers[1])
    assert [finish(second), finish(first)] == [0, 0]
    told = [json.loads(path.read_text()) for path in answers]
    assert told[0]["record"]
    assert told[1]["kind"] == "held"
    assert f"process {first.pid} on" in told[1]["problem"]
    assert updates(beats) == [(first.pid, update) for update in range(12)]
    assert without_times(record_at(RUN, place)) == without_times(expected)


def test_of_two_that_begin_at_once_one_trains_all_of_it_and_both_have_the_records(place, expected, tmp_path):
    """Whoever comes second waits for the run, and for the one that needs its weights, or takes that one."""
    beats, answers = tmp_path / "beats", [tmp_path / f"{number}.json" for number in range(2)]
    both = [start(makes_paced, [RUN, AFTER], place, PACE, beats, answer) for answer in answers]
    assert [finish(process) for process in both] == [0, 0]
    for answer in answers:
        assert json.loads(answer.read_text()) == {RUN.id: True, AFTER.id: True}
    made = Counter(update for _, update in updates(beats))
    assert made == Counter([*range(12), *range(6)]), "every update of either run was made once"
    assert len({process for process, _ in updates(beats)[:12]}) == 1
    assert without_times(record_at(RUN, place)) == without_times(expected)


def test_when_the_first_is_killed_the_second_goes_on_at_once_and_to_the_bit(place, expected, tmp_path):
    beats, answers = tmp_path / "beats", [tmp_path / f"{number}.json" for number in range(2)]
    first = start(makes_paced, [RUN], place, PACE, beats, answers[0])
    until(lambda: len(updates(beats)) >= 2)
    second = start(makes_paced, [RUN], place, PACE, beats, answers[1])
    until(lambda: len(updates(beats)) >= 5)
    os.kill(first.pid, signal.SIGKILL)
    killed = monotonic()
    until(lambda: any(process == second.pid for process, _ in updates(beats)))
    assert monotonic() - killed < 10
    assert finish(first) == -9
    assert finish(second) == 0
    assert json.loads(answers[1].read_text()) == {RUN.id: True}
    made = [update for _, update in updates(beats)]
    assert set(made) == set(range(12))
    assert len(made) <= 13, "at most the update whose state was not saved yet is made again"
    assert without_times(record_at(RUN, place)) == without_times(expected)


def test_a_second_one_that_is_killed_while_it_waits_costs_the_first_nothing(place, expected, tmp_path):
    beats, answer = tmp_path / "beats", tmp_path / "answer.json"
    first = start(makes_paced, [RUN], place, PACE, beats, answer)
    until(lambda: updates(beats))
    second = start(makes_paced, [RUN], place, PACE, beats, None)
    sleep(0.3)
    os.kill(second.pid, signal.SIGKILL)
    assert finish(second) == -9
    assert finish(first) == 0
    assert [update for _, update in updates(beats)] == list(range(12))
    assert {path.name for path in place.folder_of(RUN).iterdir()} >= {"record.json"}
    assert not list(place.folder_of(RUN).glob("claim-*"))
    assert without_times(record_at(RUN, place)) == without_times(expected)
