"""Which runs are made, in which order, what a failing one costs the others, and what there is time for."""

from dataclasses import replace
import errno
import multiprocessing
import os
from threading import Timer
import time

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit import launch, ledger
from dcvit.checkpoint import save_state
from dcvit.display import Display
from dcvit.errors import DataError, Diverged, EnvironmentProblem, Paused
from dcvit.executing import execute
from dcvit.launch import make_all
from dcvit.pausing import Course
from dcvit.recipe import FixedAlpha
from dcvit.runs import Outcome, Place, Run, Watcher, all_runs, course_of, finished
from dcvit.sources import from_folder
from tests.helpers import image_folder, pretend, tiny, with_lethal_file, without_times

A, B, C = (tiny(batch=batch) for batch in (1, 2, 3))
AFTER_A = tiny(pretrained=A)
AFTER_THAT = tiny(pretrained=AFTER_A)
FAILS = tiny(betas=(2.0, 0.9))  # a ValueError of the optimiser


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return from_folder(image_folder(tmp_path_factory.mktemp("images")))


@pytest.fixture
def place(source, tmp_path):
    return Place(source, tmp_path, "cpu", 0)


# --- which runs there are ------------------------------------------------------------------


def test_runs_others_start_from_come_first():
    assert all_runs([AFTER_THAT, B], (0,)) == [Run(A, 0), Run(AFTER_A, 0), Run(AFTER_THAT, 0), Run(B, 0)]


def test_a_run_starts_from_that_of_its_own_seed():
    assert [run.before for run in all_runs([AFTER_A], (0, 1))] == [None, Run(A, 0), None, Run(A, 1)]


@given(st.lists(st.sampled_from([A, B, C, AFTER_A, AFTER_THAT])), st.lists(st.integers(0, 3), unique=True))
def test_every_run_is_there_once_and_after_the_one_it_needs(recipes, seeds):
    runs = all_runs(recipes, seeds)
    assert len(set(runs)) == len(runs)
    assert {Run(recipe, seed) for recipe in recipes for seed in seeds} <= set(runs)
    for run in runs:
        assert run.before is None or runs.index(run.before) < runs.index(run)


# --- in this process, with a made-up training ----------------------------------------------


def made_up(monkeypatch, problems=None, calls=None):
    """Replaces training: the runs of `problems` end in that problem, all others in a record."""

    def execute(run, place, observe, stopped):
        if calls is not None:
            calls.append(run)
        return (problems or {}).get(run, Outcome(record=object()))

    monkeypatch.setattr(launch, "execute", execute)


def make(runs, place):
    return make_all(runs, place, jobs=1, watcher=Watcher())


def test_a_failed_run_does_not_stop_the_others(place, monkeypatch):
    runs = all_runs([A, B, C], (0,))
    made_up(monkeypatch, {Run(B, 0): Outcome(problem="why", kind="failed")})
    outcomes = make(runs, place)
    assert {run: outcome.kind for run, outcome in outcomes.items()} == {
        Run(A, 0): "",
        Run(B, 0): "failed",
        Run(C, 0): "",
    }


def test_what_needs_a_failed_run_is_not_started_and_says_so(place, monkeypatch):
    calls = []
    made_up(monkeypatch, {Run(A, 0): Outcome(problem="why", kind="diverged")}, calls)
    outcomes = make(all_runs([AFTER_A, B], (0,)), place)
    assert outcomes[Run(AFTER_A, 0)] == Outcome(
        problem=f"not started: run {Run(A, 0).id}, whose weights it needs, has no record", kind="failed"
    )
    assert set(calls) == {Run(A, 0), Run(B, 0)}


def test_a_failed_seed_costs_only_its_own_dependents(place, monkeypatch):
    made_up(monkeypatch, {Run(A, 0): Outcome(problem="why", kind="failed")})
    outcomes = make(all_runs([AFTER_A], (0, 1)), place)
    assert {run.seed for run, outcome in outcomes.items() if outcome.record is None} == {0}


@pytest.mark.parametrize("longest", [AFTER_A, AFTER_THAT], ids=["the first", "the second"])
def test_a_failure_reaches_the_end_of_a_chain(place, monkeypatch, longest):
    first = replace(AFTER_A, epochs=100) if longest == AFTER_A else AFTER_A
    second = tiny(pretrained=first, epochs=100 if longest == AFTER_THAT else 1)
    made_up(monkeypatch, {Run(A, 0): Outcome(problem="why", kind="failed")})
    outcomes = make(all_runs([second], (0,)), place)
    assert [outcome.kind for outcome in outcomes.values()] == ["failed"] * 3


def test_after_a_problem_of_the_machine_nothing_new_is_started(place, monkeypatch):
    calls = []
    runs = all_runs([A, B, C], (0,))
    made_up(monkeypatch, dict.fromkeys(runs, Outcome(problem="the disk is full", kind="environment")), calls)
    outcomes = make(runs, place)
    assert len(calls) == 1
    assert sorted(outcome.problem for outcome in outcomes.values()) == [
        "not started: the disk is full",
        "not started: the disk is full",
        "the disk is full",
    ]


def test_fine_tuning_goes_after_what_others_may_wait_for(place, monkeypatch):
    calls = []
    made_up(monkeypatch, {}, calls)
    runs = [Run(replace(AFTER_A, epochs=9), 0), Run(B, 0)]  # the run on A is the longer one, and A is done
    make(runs, place)
    assert calls == [runs[1], runs[0]]


def test_the_watcher_hears_of_every_end(place, monkeypatch):
    heard = []
    made_up(monkeypatch, {Run(B, 0): Outcome(problem="why", kind="failed")})
    outcomes = make_all(
        all_runs([A, B], (0,)),
        place,
        jobs=1,
        watcher=Watcher(ended=lambda run, outcome: heard.append((run, outcome))),
    )
    assert dict(heard) == outcomes


@pytest.mark.parametrize(
    ("error", "kind", "problem"),
    [
        (Diverged("at update 3"), "diverged", "diverged: at update 3"),
        (DataError("no images"), "environment", "no images"),
        (EnvironmentProblem("no device"), "environment", "no device"),
        (OSError(errno.ENOSPC, "No space left on device"), "environment", "No space left on device"),
        (OSError(errno.ENOENT, "No such file"), "failed", "No such file"),
        (ValueError("first line\nsecond line"), "failed", "ValueError: first line (see "),
        (Paused("paused after 3 of 9 updates"), "paused", "paused after 3 of 9 updates"),
        (KeyError(), "failed", "KeyError: "),
        (MemoryError(), "failed", "MemoryError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_in_a_run_becomes_its_outcome(error, kind, problem, place, monkeypatch):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr("dcvit.training.fit", fit)
    outcome = execute(Run(A, 0), place, lambda progress: None)
    assert (outcome.record, outcome.kind) == (None, kind)
    assert problem in outcome.problem
    assert "\n" not in outcome.problem


def test_the_traceback_of_a_failed_run_lies_in_its_folder(place):
    outcome = execute(Run(FAILS, 0), place, lambda progress: None)
    folder = ledger.folder_of(place.out, FAILS, 0, place.source.fingerprint)
    assert outcome.problem.startswith("ValueError: Invalid beta parameter at index 0: 2.0")
    assert outcome.problem.endswith(f" (see {folder / 'error.txt'})")
    assert "Traceback" in (folder / "error.txt").read_text()


# --- what is finished ----------------------------------------------------------------------


def test_finished_runs_are_found_and_unusable_ones_say_why(place):
    runs = all_runs([A, B, C], (0,))
    make(runs[:2], place)
    path = ledger.folder_of(place.out, A, 0, place.source.fingerprint) / "record.json"
    path.write_text(path.read_text()[:100])
    records, unusable = finished(runs, place)
    assert records.keys() == {Run(B, 0)}
    assert unusable.keys() == {Run(A, 0)}
    assert unusable[Run(A, 0)].startswith(f"{path} is cut off or damaged")


# --- a deadline, with a made-up clock ------------------------------------------------------


class Clock:
    """Time that passes only while a run is made."""

    def __init__(self, monkeypatch, place, lasts, ends=None):
        self.now, self.lasts, self.ends, self.started = 0.0, lasts, ends or {}, []
        self.place = place
        monkeypatch.setattr(launch, "time", lambda: self.now)
        monkeypatch.setattr(launch, "execute", self.execute)

    def execute(self, run, place, observe, stopped):
        assert place == self.place, "a run must be told the deadline"
        self.started.append(run)
        self.now += self.lasts[run]
        return self.ends.get(run, Outcome(record=object()))

    def make(self, runs, estimate=None):
        estimate = estimate or (lambda made: lambda run: self.lasts[run])
        return make_all(runs, self.place, jobs=1, watcher=Watcher(), estimate=estimate)


def until(place, deadline):
    return replace(place, deadline=deadline)


NEEDS_10 = [(9.9, False), (10.9, False), (11.1, True), (1e9, True)]


@pytest.mark.parametrize(("deadline", "starts"), NEEDS_10)
def test_a_run_starts_only_if_it_would_end_in_time_with_some_to_spare(deadline, starts, place, monkeypatch):
    run = Run(A, 0)
    clock = Clock(monkeypatch, until(place, deadline), {run: 10.0})
    (outcome,) = clock.make([run]).values()
    assert clock.started == [run] * starts
    assert outcome.kind == ("" if starts else "postponed")


def test_what_is_postponed_says_how_much_time_is_needed_and_left(place, monkeypatch):
    run = Run(A, 0)
    clock = Clock(monkeypatch, until(place, 90.0), {run: 600.0})
    assert clock.make([run])[run] == Outcome(
        problem="not started: it would take about 11.0 minutes, 1.5 are left", kind="postponed"
    )


def test_a_shorter_run_takes_the_time_that_a_longer_one_has_not(place, monkeypatch):
    runs = [Run(replace(A, epochs=epochs), 0) for epochs in (9, 8, 7)]
    clock = Clock(monkeypatch, until(place, 100.0), dict(zip(runs, (200.0, 60.0, 30.0), strict=True)))
    outcomes = clock.make(runs)
    assert clock.started == runs[1:]
    assert [outcomes[run].kind for run in runs] == ["postponed", "", ""]


def test_after_the_deadline_nothing_starts_even_if_nobody_knows_how_long_it_takes(place, monkeypatch):
    runs = all_runs([A, B, C], (0,))
    clock = Clock(monkeypatch, until(place, 15.0), dict.fromkeys(runs, 10.0))
    outcomes = make_all(runs, clock.place, jobs=1, watcher=Watcher())
    assert len(clock.started) == 2
    assert sorted(outcome.kind for outcome in outcomes.values()) == ["", "", "postponed"]


def test_without_a_deadline_no_estimate_is_asked_for(place, monkeypatch):
    runs = all_runs([A, B], (0,))
    clock = Clock(monkeypatch, place, dict.fromkeys(runs, 1e9))

    def never(made):
        raise AssertionError

    assert [outcome.kind for outcome in clock.make(runs, never).values()] == ["", ""]


def test_while_another_process_trains_nothing_is_estimated(place, monkeypatch):
    """Looked at every second, that would keep a core busy with a full ledger."""
    run, asked = Run(A, 0), []
    clock = Clock(
        monkeypatch, until(place, 100.0), {run: 0.0}, {run: Outcome(problem="another's", kind="held")}
    )

    def wait(seconds):
        clock.now += seconds

    def estimate(made):
        asked.append(clock.now)
        return lambda run: 5.0

    monkeypatch.setattr(launch, "state_of", lambda folder: "held")
    monkeypatch.setattr(launch, "sleep", wait)
    assert clock.make([run], estimate)[run].kind == "stopped"
    assert clock.now == 100.0
    assert asked == [0.0, 100.0]  # before it was tried, and for what is said last


def test_estimates_hear_of_the_runs_that_were_finished_meanwhile(place, monkeypatch):
    """The first looks ten times too long; what it took shows that the others fit."""
    runs = [Run(replace(A, epochs=epochs), 0) for epochs in (9, 8, 7)]
    clock = Clock(monkeypatch, until(place, 100.0), dict.fromkeys(runs, 5.0))
    outcomes = clock.make(
        runs, lambda made: lambda run: 5.0 if made else {9: 500.0, 8: 80.0, 7: 500.0}[run.recipe.epochs]
    )
    assert clock.started == [runs[1], runs[0], runs[2]]
    assert {outcome.kind for outcome in outcomes.values()} == {""}


@pytest.mark.parametrize("first", ["paused", "postponed"])
@pytest.mark.parametrize("epochs", [1, 1000])
def test_what_needs_a_run_that_is_not_finished_is_postponed_to_the_end_of_the_chain(
    first, epochs, place, monkeypatch
):
    runs = all_runs([tiny(pretrained=AFTER_A, epochs=epochs), B], (0,))
    lasts = {**dict.fromkeys(runs, 1.0), runs[0]: 1.0 if first == "paused" else 1e9}
    ends = {runs[0]: Outcome(problem="paused after 3 of 9 updates", kind="paused")}
    clock = Clock(monkeypatch, until(place, 100.0), lasts, ends)
    outcomes = clock.make(runs)
    assert [outcomes[run].kind for run in runs] == [first, "postponed", "postponed", ""]
    for run in runs[1:3]:
        assert outcomes[run].problem == (
            f"not started: run {run.before.id}, whose weights it needs, is not finished"
        )
    assert set(clock.started) == ({runs[0], runs[3]} if first == "paused" else {runs[3]})


def test_a_full_disk_is_a_failure_and_no_lack_of_time(place, monkeypatch):
    runs = all_runs([A, B], (0,))
    full = Outcome(problem="the disk is full", kind="environment")
    clock = Clock(monkeypatch, until(place, 100.0), dict.fromkeys(runs, 1.0), dict.fromkeys(runs, full))
    assert sorted(outcome.kind for outcome in clock.make(runs).values()) == ["environment", "failed"]


def save_course(place, run, *, update, updates, seconds):
    course = Course(
        maker={},
        update=update,
        updates=updates,
        evolution=[],
        best={},
        started="",
        seconds=seconds,
        epoch_seconds=0.0,
    )
    return save_state(place.folder_of(run), {}, course)


@pytest.mark.parametrize(("deadline", "starts"), [(5.0, False), (6.5, False), (6.7, True), (30.0, True)])
def test_of_a_paused_run_the_rest_must_fit(deadline, starts, place, monkeypatch):
    """70 of 100 updates took 14 s, so 6 s are left, 6.6 with caution; the estimate of the whole is far off.

    Another run has had its time before, or the rest would be more than there is time for in any call.
    """
    paused, before = Run(A, 0), Run(replace(A, epochs=99), 0)
    save_course(place, paused, update=70, updates=100, seconds=14.0)
    clock = Clock(monkeypatch, until(place, 50.0 + deadline), {before: 50.0, paused: 6.0})
    outcomes = clock.make([paused, before], lambda made: lambda run: 0.0 if run == before else 1e9)
    assert clock.started == [before, paused][: 1 + starts]
    assert outcomes[paused].kind == ("" if starts else "postponed")


def test_a_paused_run_that_no_call_has_time_for_goes_on_all_the_same(place, monkeypatch):
    paused, fresh = Run(A, 0), Run(B, 0)
    save_course(place, paused, update=1, updates=1000, seconds=1.0)
    ends = {paused: Outcome(problem="paused", kind="paused")}
    clock = Clock(monkeypatch, until(place, 60.0), {paused: 60.5, fresh: 1e9}, ends)
    outcomes = clock.make([paused, fresh])
    assert clock.started == [paused]
    assert [outcomes[run].kind for run in (paused, fresh)] == ["paused", "postponed"]


def test_a_state_that_tells_nothing_counts_as_none(place, monkeypatch):
    run = Run(A, 0)
    save_course(place, run, update=99, updates=100, seconds=1.0).write_bytes(b"torn")
    assert course_of(run, place) is None
    clock = Clock(monkeypatch, until(place, 10.0), {run: 20.0})
    assert clock.make([run])[run].kind == "postponed"


@pytest.mark.parametrize(
    ("kind", "told"),
    [("paused", "why"), ("postponed", "why"), ("failed", "FAILED: why"), ("diverged", "FAILED: why")],
)
def test_a_lack_of_time_is_not_shown_as_a_failure(kind, told, capsys):
    with Display({Run(A, 0): "a run"}) as display:
        display.watcher.ended(Run(A, 0), Outcome(problem="why", kind=kind))
    assert capsys.readouterr().out.startswith(f"[1/1] a run: {told}\n")


@given(
    lasts=st.lists(st.integers(1, 100), min_size=6, max_size=6),
    guesses=st.lists(st.integers(1, 100), min_size=6, max_size=6),
    deadline=st.integers(0, 400),
)
def test_every_run_is_made_exactly_if_its_estimate_fits_when_its_turn_comes(lasts, guesses, deadline, source):
    runs = all_runs([A, B, C, AFTER_THAT, tiny(epochs=3)], (0,))
    took, guess = dict(zip(runs, lasts, strict=True)), dict(zip(runs, guesses, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        place = Place(source, source.root / "out", "cpu", 0, float(deadline))
        clock = Clock(patch, place, took)
        outcomes = clock.make(runs, lambda made: lambda run: guess[run])
    assert outcomes.keys() == set(runs)
    assert {run for run in runs if outcomes[run].record} == set(clock.started)
    begun = 0
    for run in clock.started:
        assert begun + 1.1 * guess[run] <= deadline
        assert run.before is None or outcomes[run.before].record
        begun += took[run]
    for run in set(runs) - set(clock.started):
        assert outcomes[run].kind == "postponed"
        waits = run.before is not None and not outcomes[run.before].record
        assert waits or begun + 1.1 * guess[run] > deadline


# --- processes -----------------------------------------------------------------------------


def test_processes_side_by_side_survive_a_dead_one_and_a_failed_run(source, tmp_path):
    """One run raises, one ends its process; the fine-tuning waits for its base; all else gets a record."""
    place = Place(with_lethal_file(source), tmp_path, "cpu", 0)
    base = tiny(train_images=12)
    lethal = tiny(train_images=None)
    fails = replace(FAILS, train_images=12)
    recipes = [
        base,
        tiny(train_images=12, pretrained=base),
        lethal,
        tiny(train_images=12, pretrained=lethal),
        fails,
        tiny(train_images=12, alpha=FixedAlpha(alpha=0.1)),
    ]
    runs = all_runs(recipes, (0,))
    outcomes = make_all(runs, place, jobs=2, watcher=Watcher())
    told = [outcomes[Run(recipe, 0)] for recipe in recipes]
    assert [outcome.record is not None for outcome in told] == [True, True, False, False, False, True]
    assert told[2].problem.startswith("its process ended with code 7")
    assert told[3].problem.startswith(f"not started: run {Run(lethal, 0).id}")
    assert told[4].problem.startswith("ValueError: Invalid beta")
    assert finished(runs, place)[0].keys() == {Run(recipes[index], 0) for index in (0, 1, 5)}
    here = execute(Run(base, 0), replace(place, out=tmp_path / "here"), lambda progress: None)
    made_here, made_there = (
        replace(without_times(record), environment={}) for record in (here.record, told[0].record)
    )
    assert made_here == made_there


@pytest.fixture
def pretending(monkeypatch):
    """Processes that train nothing, see `tests.helpers.pretend`."""
    monkeypatch.setattr(launch, "_work", pretend)


def test_a_process_that_is_killed_while_idle_costs_no_run(place, pretending):
    """B's process is idle until A is done, on which two more runs wait."""
    go = place.out / f"{Run(A, 0).id}.wait"
    go.touch()
    processes = {}

    def ended(run, outcome):
        if run == Run(B, 0):
            (idle,) = [child for child in multiprocessing.active_children() if child.pid == processes[run]]
            idle.kill()
            idle.join()
            go.unlink()

    runs = [Run(A, 0), Run(B, 0), Run(AFTER_A, 0), Run(replace(AFTER_A, batch=2), 0)]
    outcomes = make_all(runs, place, jobs=2, watcher=Watcher(processes.__setitem__, ended))
    assert outcomes.keys() == set(runs)
    assert [run for run, outcome in outcomes.items() if outcome.record is None] == []


def come_late(pipe, place):
    """What a process does, after the deadline."""
    time.sleep(max(0, place.deadline - time.time()))
    launch._work(pipe, place)


def test_runs_side_by_side_are_paused_at_their_first_look_and_go_on_to_the_bit(place, monkeypatch):
    runs = all_runs([A, AFTER_A, B], (0,))
    heard = {}
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_work", come_late)
        first = make_all(
            runs, until(place, time.time() + 3), jobs=2, watcher=Watcher(ended=heard.__setitem__)
        )
    assert first == heard
    assert {run: outcome.kind for run, outcome in first.items()} == {
        Run(A, 0): "paused",
        Run(B, 0): "paused",
        Run(AFTER_A, 0): "postponed",
    }
    assert first[Run(A, 0)].problem == "paused after 12 of 24 updates (the time is up); its state is saved"
    assert course_of(Run(A, 0), place).update == 12
    assert finished(runs, place) == ({}, {})

    second = make(runs, place)
    assert {outcome.kind for outcome in second.values()} == {""}
    assert not list(place.out.rglob("state-*"))
    undisturbed = make(runs, replace(place, out=place.out / "undisturbed"))
    for run in runs:
        assert without_times(second[run].record) == without_times(undisturbed[run].record)


def test_a_deadline_holds_side_by_side_too(place, pretending):
    runs = all_runs([A, B, C], (0,))
    outcomes = make_all(
        runs,
        until(place, time.time() + 60),
        jobs=2,
        watcher=Watcher(),
        estimate=lambda made: lambda run: 1.0 if run == Run(B, 0) else 100.0,
    )
    assert [outcomes[run].kind for run in runs] == ["postponed", "", "postponed"]


def test_as_many_runs_as_jobs_are_made_at_once(place, pretending):
    """The first waits until a second one has begun; a minute, at most."""
    runs, begun = all_runs([A, B, C], (0, 1)), []

    def go():
        for path in place.out.glob("*.wait"):
            path.unlink()

    def progress(run, process):
        begun.append(run)
        if len(begun) == 2:
            go()

    for run in runs:
        (place.out / f"{run.id}.wait").touch()
    in_the_end = Timer(60, go)
    in_the_end.start()
    outcomes = make_all(runs, place, jobs=2, watcher=Watcher(progress=progress))
    in_the_end.cancel()
    assert len(outcomes) == 6
    assert max(outcome.record for outcome in outcomes.values()) == 2


def test_progress_in_other_processes_is_heard_here(place, pretending):
    heard = {}
    runs = all_runs([A, B], (0,))
    make_all(runs, place, jobs=2, watcher=Watcher(progress=heard.__setitem__))
    assert heard.keys() == set(runs)
    assert os.getpid() not in heard.values()


def test_ctrl_c_ends_the_processes(place, pretending, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.5)  # these do not listen

    def interrupt(run, process):
        raise KeyboardInterrupt

    runs = all_runs([A, B], (0,))
    for run in runs:
        (place.out / f"{run.id}.wait").touch()
    with pytest.raises(KeyboardInterrupt):
        make_all(runs, place, jobs=2, watcher=Watcher(progress=interrupt))
    assert multiprocessing.active_children() == []
