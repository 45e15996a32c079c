"""Work done ahead: in order, two results early, and ended when nobody wants it any more."""

from functools import partial
import subprocess
import threading
from time import sleep

import pytest
import torch

from dcvit.ahead import AHEAD, Job, finished
from tests.helpers import environment, python, threads_of_ours


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order_with_all_their_parts(threads):
    def jobs():
        for number in range(20):
            result = []
            yield Job((number, result), [partial(result.append, part) for part in range(5)])

    found = list(finished(jobs(), threads=threads))
    assert [number for number, _ in found] == list(range(20))
    assert all(sorted(parts) == list(range(5)) for _, parts in found)
    assert not threads_of_ours()


def test_two_results_are_made_ahead_and_no_more():
    asked = []

    def jobs():
        for number in range(10):
            asked.append(number)
            yield Job(number, [])

    results = finished(jobs(), threads=1)
    for number in range(5):
        assert next(results) == number
        assert len(asked) == number + 1 + AHEAD
    results.close()
    assert not threads_of_ours()


def test_without_threads_nothing_is_made_ahead():
    asked = []
    jobs = (Job(number, [partial(asked.append, number)]) for number in range(9))
    results = finished(jobs, threads=0)
    assert asked == []
    assert [next(results), next(results)] == asked == [0, 1]


def test_threads_work_at_the_same_time():
    both = threading.Barrier(2)
    assert list(finished(iter([Job(1, [partial(both.wait, 20)] * 2)]), threads=2)) == [1]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_comes_last_comes_after_all_parts(threads):
    def jobs():
        for _ in range(20):
            result = []

            def part(result=result):
                sleep(0.001)
                result.append("part")

            yield Job(result, [part] * 5, partial(result.append, "last"))

    assert list(finished(jobs(), threads=threads)) == [["part"] * 5 + ["last"]] * 20
    assert not threads_of_ours()


@pytest.mark.parametrize("threads", [0, 2])
def test_nothing_comes_last_where_a_part_failed_and_what_it_raises_itself_is_raised(threads):
    def bad():
        raise KeyError("bad")

    done = []
    for job in (Job(0, [bad], partial(done.append, 0)), Job(1, [], bad)):
        with pytest.raises(KeyError):
            next(finished(iter([job]), threads=threads))
    assert done == []
    assert not threads_of_ours()


@pytest.mark.parametrize("threads", [0, 2])
def test_what_a_part_raises_comes_where_its_result_would_have(threads):
    def bad():
        raise KeyError("bad")

    jobs = (Job(number, [bad] if number == 3 else []) for number in range(9))
    results = finished(jobs, threads=threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert not threads_of_ours()


def test_closing_does_not_wait_for_what_has_not_begun():
    done = []
    jobs = (Job(number, [partial(sleep, 0.01), partial(done.append, number)] * 20) for number in range(5))
    results = finished(jobs, threads=1)
    next(results)
    results.close()
    assert done.count(1) < 20
    assert not threads_of_ours()


def test_torch_keeps_its_threads_but_for_those_that_work_ahead():
    before = torch.get_num_threads()
    seen, later = [], []
    try:
        torch.set_num_threads(2)
        parts = [lambda: seen.append(torch.get_num_threads())] * 4
        assert list(finished(iter([Job(0, parts)]), threads=2)) == [0]
        assert torch.get_num_threads() == 2
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 4
    assert later == [2]


ABANDONED = """
from functools import partial
from time import sleep
from dcvit.ahead import Job, finished
jobs = (Job(number, [partial(sleep, 0.05)] * 4) for number in range(10_000))
results = finished(jobs, threads=2)
next(results)
{}
"""


@pytest.mark.parametrize("end", ["keep = [results]; keep.append(keep)", "1 / 0"])
def test_threads_keep_no_process_alive(end):
    child = subprocess.run(
        python("-c", ABANDONED.format(end)), env=environment(), capture_output=True, timeout=60, check=False
    )
    assert child.returncode == (1 if end == "1 / 0" else 0)
