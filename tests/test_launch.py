"""Which runs are made, in which order, and what a failing one costs the others."""

from dataclasses import replace
import errno
import multiprocessing
import os

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dcvit import launch, ledger
from dcvit.errors import DataError, Diverged, EnvironmentProblem
from dcvit.launch import Outcome, Place, Run, Watcher, all_runs, finished, make_all
from dcvit.recipe import FixedAlpha
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

    def execute(run, place, observe):
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
        (KeyError(), "failed", "KeyError: "),
        (MemoryError(), "failed", "MemoryError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_in_a_run_becomes_its_outcome(error, kind, problem, place, monkeypatch):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr("dcvit.training.fit", fit)
    outcome = launch.execute(Run(A, 0), place, lambda progress: None)
    assert (outcome.record, outcome.kind) == (None, kind)
    assert problem in outcome.problem
    assert "\n" not in outcome.problem


def test_the_traceback_of_a_failed_run_lies_in_its_folder(place):
    outcome = launch.execute(Run(FAILS, 0), place, lambda progress: None)
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
    here = launch.execute(Run(base, 0), replace(place, out=tmp_path / "here"), lambda progress: None)
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


def test_as_many_runs_as_jobs_are_made_at_once(place, pretending):
    outcomes = make_all(all_runs([A, B, C], (0, 1)), place, jobs=2, watcher=Watcher())
    assert len(outcomes) == 6
    assert max(outcome.record for outcome in outcomes.values()) == 2


def test_progress_in_other_processes_is_heard_here(place, pretending):
    heard = {}
    runs = all_runs([A, B], (0,))
    make_all(runs, place, jobs=2, watcher=Watcher(progress=heard.__setitem__))
    assert heard.keys() == set(runs)
    assert os.getpid() not in heard.values()


def test_ctrl_c_ends_the_processes(place, pretending):
    def interrupt(run, process):
        raise KeyboardInterrupt

    runs = all_runs([A, B], (0,))
    for run in runs:
        (place.out / f"{run.id}.wait").touch()
    with pytest.raises(KeyboardInterrupt):
        make_all(runs, place, jobs=2, watcher=Watcher(progress=interrupt))
    assert multiprocessing.active_children() == []
