"""What takes minutes: `tox -e faults-long`."""

from dataclasses import replace
import json
import os
import random
import signal
from time import monotonic, sleep

import pytest

from dcvit.feed import Feed
from dcvit.runs import Place, Run
from dcvit.sources import from_folder
from tests.faults import child
from tests.faults.child import ALL_OF_IT, finish, start, trains_paced
from tests.faults.test_kills import CASES, assert_same, killed_at_random, record_at, undisturbed
from tests.faults.test_ranks_die import executed
from tests.helpers import image_folder, tiny, without_times

pytestmark = pytest.mark.long
TWO = Run(tiny(batch=6, groups=2, epochs=6, ema_decay=0.9), 0)  # 12 updates, in two processes


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.mark.parametrize("name", [*CASES, "two decoding processes"])
def test_forty_kills_at_random_moments_change_no_bit(name, source, tmp_path):
    """Of each of five kinds of runs: 200 kills."""
    recipe, how = CASES.get(name, (ALL_OF_IT, {"workers": 2, "feed": Feed(augmentation="pil")}))
    moments, total, number = random.Random(name), 0, 0
    while total < 40:
        run = Run(replace(recipe, epochs=4), number)
        place = Place(source, tmp_path / str(number), "cpu", **{"workers": 0, **how})
        begin = monotonic()
        expected = undisturbed(run, place, pace=0.05)
        span = 0.6 * (monotonic() - begin)
        total += killed_at_random(run, place, moments, pace=0.05, span=span)[0]
        assert_same(run, place, expected)
        number += 1


@pytest.mark.parametrize("seed", range(3))
def test_two_processes_of_a_run_that_are_killed_at_random_end_to_the_bit(seed, source, tmp_path):
    """Now the whole group, agent and all; the same call then goes on."""
    calm = Place(source, tmp_path / "undisturbed", "cpu", 0, gpus_per_run=2)
    calm.out.mkdir()
    begin = monotonic()
    told = _executed(calm, calm.out)
    assert told["record"], told
    span = monotonic() - begin
    place = replace(calm, out=tmp_path / "out", save_every=0.0)
    place.out.mkdir()
    moments, killed = random.Random(seed), 0
    while record_at(TWO, place) is None:
        process = start(
            child.logged, place.out / "log", child.watched, TWO, place, child.slow_member,
            {"OMP_NUM_THREADS": "1"}, place.out / "answer.json",
        )  # fmt: skip
        if killed < 5:
            process.join(moments.uniform(0.5, 1.2) * span)
            killed += 1
        else:
            process.join(300)
            assert not process.is_alive()
        child.kill_group(process)
        process.join()
    assert without_times(record_at(TWO, place)) == without_times(record_at(TWO, calm))


def _executed(place, folder):
    log, answer = folder / "log", folder / "answer.json"
    process = start(
        child.logged, log, child.watched, TWO, place, child.slow_member, {"OMP_NUM_THREADS": "1"}, answer
    )
    assert finish(process, seconds=300) == 0, log.read_text()
    return json.loads(answer.read_text())


def test_a_process_that_hangs_and_hears_no_signal_is_killed_and_the_run_goes_on(source, tmp_path):
    place = Place(source, tmp_path / "out", "cpu", 0, gpus_per_run=2, save_every=0.0)
    place.out.mkdir()
    told = executed(place, child.stubborn_member, tmp_path, seconds=400, DCVIT_TIMEOUT="5")
    assert told["record"], told
    assert "process 0 of 2 lost another one" in told["log"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_signals_at_random_moments_change_no_bit(number, source, tmp_path):
    """The run listens as the commands do; it is told again and again."""
    run, place = Run(replace(ALL_OF_IT, epochs=4), 0), Place(source, tmp_path / "out", "cpu", 0)
    expected, moments = undisturbed(run, place), random.Random(int(number))
    stops = 0
    while record_at(run, place) is None:
        process = start(child.trains_listening, run, place, 0.05, place.out / "ready")
        while not (place.out / "ready").exists() and process.is_alive():
            sleep(0.01)
        sleep(moments.uniform(0, 0.3))
        if process.is_alive():
            os.kill(process.pid, number)
        told = monotonic()
        assert finish(process) == 0
        assert monotonic() - told < 10
        (place.out / "ready").unlink()
        stops += 1
        assert stops < 100
    finish(start(trains_paced, run, place, 0.0))
    assert_same(run, place, expected)
