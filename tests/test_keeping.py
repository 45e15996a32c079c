"""When a state is saved, and what it costs when that fails, with a clock that is made up."""

from dataclasses import replace
import errno
import os

import pytest
import torch

from dcvit import checkpoint, keeping, pausing
from dcvit.claims import TakenOver, claim
from dcvit.errors import Paused
from dcvit.keeping import SHARE, Keeper, clean, gone_on
from dcvit.pausing import Course
from dcvit.state import Tally, begin_state, tensors_of
from tests.helpers import tiny

COURSE = Course(
    maker={"run": "a"},
    update=3,
    updates=9,
    evolution=[],
    best={"top1": 1.0},
    started="2026-01-01T00:00:00+00:00",
    seconds=1.0,
    epoch_seconds=0.0,
)


class Clock:
    """Time that passes when it is told to, and while a state is saved."""

    def __init__(self, monkeypatch):
        self.now, self.saving, self.saved = 1000.0, 0.0, []
        monkeypatch.setattr(keeping, "monotonic", lambda: self.now)
        original = keeping.save_state

        def save(folder, tensors, course):
            self.now += self.saving
            self.saved.append(course.update)
            return original(folder, tensors, course)

        monkeypatch.setattr(keeping, "save_state", save)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture(scope="module")
def state():
    return fresh_state(0)


def fresh_state(seed=1):
    state = begin_state(tiny(), seed, torch.device("cpu"))
    empty = Tally.empty(state.device)
    parts = {
        name: torch.clone(value) for name, value in vars(empty).items() if isinstance(value, torch.Tensor)
    }
    state.tally = replace(empty, **parts)
    return state


def keeper_of(state, folder, clock, *, every=600.0, leads=True, mine=None):
    return Keeper(folder, state, leads, every, mine, saved_at=clock.now)


def at(update):
    return lambda: replace(COURSE, update=update)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- when ----------------------------------------------------------------------------------


def test_in_the_middle_of_an_epoch_a_state_is_saved_when_the_last_one_is_old(state, tmp_path, clock):
    keeper = keeper_of(state, tmp_path, clock, every=600.0)
    for minute in range(1, 32):
        clock.now += 60
        keeper.at_look(at(minute))
    assert clock.saved == [10, 20, 30]


def test_a_state_of_an_epochs_end_counts_for_the_middle_of_the_next_one(state, tmp_path, clock):
    keeper = keeper_of(state, tmp_path, clock, every=600.0)
    clock.now += 500
    keeper.at_epoch_end(at(1))
    clock.now += 500
    keeper.at_look(at(2))
    clock.now += 101
    keeper.at_look(at(3))
    assert clock.saved == [1, 3]


def test_the_first_epochs_end_is_saved_whenever_it_comes(state, tmp_path, clock):
    keeper_of(state, tmp_path, clock).at_epoch_end(at(1))
    assert clock.saved == [1]


@pytest.mark.parametrize("seconds", [0.1, 3.0])
def test_at_the_ends_of_short_epochs_saving_takes_at_most_a_twentieth_of_the_time(
    seconds, state, tmp_path, clock
):
    """A state takes 1 s here: after one nothing is saved for 20 s."""
    clock.saving = 1.0
    keeper = keeper_of(state, tmp_path, clock)
    begin = clock.now
    for epoch in range(int(200 / seconds)):
        clock.now += seconds
        keeper.at_epoch_end(at(epoch))
    assert len(clock.saved) * clock.saving <= SHARE * (clock.now - begin) + 2
    assert len(clock.saved) >= 8


def test_at_the_ends_of_long_epochs_every_state_is_saved(state, tmp_path, clock):
    clock.saving = 1.0
    keeper = keeper_of(state, tmp_path, clock, every=1e9)
    for epoch in range(1, 6):
        clock.now += 1.0 / SHARE
        keeper.at_epoch_end(at(epoch))
    assert clock.saved == [1, 2, 3, 4, 5]


def test_a_clock_of_the_wall_that_jumps_moves_nothing(state, tmp_path, monkeypatch):
    """The time between two states is that of a clock that only goes forward."""
    monkeypatch.setattr("time.time", lambda: -1e9)
    keeper = Keeper(tmp_path, state, True, 600.0)
    keeper.at_look(at(1))
    assert pausing.states(tmp_path) == []


def test_a_course_is_not_put_together_for_nothing(state, tmp_path, clock):
    def never():
        raise AssertionError

    keeper_of(state, tmp_path, clock).at_look(never)


def test_the_last_two_are_kept(state, tmp_path, clock):
    keeper = keeper_of(state, tmp_path, clock)
    for update in range(1, 6):
        keeper.save(at(update)())
    assert [pausing.read_course(path).update for path in pausing.states(tmp_path)] == [5, 4]


def test_only_the_first_process_writes(state, tmp_path, clock):
    keeper = keeper_of(state, tmp_path, clock, every=0.0, leads=False)
    keeper.at_epoch_end(at(1))
    keeper.at_look(at(2))
    waited = []
    keeper.pause(COURSE, "why", together=lambda: waited.append(list(tmp_path.iterdir())))
    assert clock.saved == []
    assert waited == [[]]


# --- to stop -------------------------------------------------------------------------------


def test_a_pause_saves_first_and_waits_for_the_others_then(state, tmp_path, clock):
    there = []
    keeper = keeper_of(state, tmp_path, clock)
    paused = keeper.pause(COURSE, "SIGTERM", together=lambda: there.append(len(pausing.states(tmp_path))))
    assert isinstance(paused, Paused)
    assert str(paused) == "paused after 3 of 9 updates (SIGTERM); its state is saved"
    assert there == [1]


def test_a_pause_without_room_says_nothing_of_a_saved_state(state, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        keeper_of(state, tmp_path, clock).pause(COURSE, "SIGTERM", together=lambda: None)


def test_one_that_was_taken_over_saves_nothing(state, tmp_path, clock):
    mine = claim(tmp_path)
    (tmp_path / "claim-0002.json").write_text("{}")
    keeper = keeper_of(state, tmp_path, clock, every=0.0, mine=mine)
    for save in (keeper.at_look, keeper.at_epoch_end):
        with pytest.raises(TakenOver):
            save(at(1))
    with pytest.raises(TakenOver):
        keeper.pause(COURSE, "SIGTERM", together=lambda: None)
    assert pausing.states(tmp_path) == []


# --- full ----------------------------------------------------------------------------------


def test_a_full_disk_costs_a_note_and_not_the_run(state, tmp_path, clock, monkeypatch, capsys):
    keeper = keeper_of(state, tmp_path, clock, every=600.0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", full)
        keeper.at_epoch_end(at(1))
    told = capsys.readouterr().err
    assert told == (
        f"note: the state of update 1 could not be saved in {tmp_path} (No space left on device). The run goes on\n"
    )
    clock.now += 599
    keeper.at_look(at(2))
    assert clock.saved == [1], "it is not tried again at once"
    clock.now += 2
    keeper.at_look(at(3))
    assert [pausing.read_course(path).update for path in pausing.states(tmp_path)] == [3]


# --- to go on ------------------------------------------------------------------------------


def on(folder):
    """A new state, and where it goes on."""
    mine = fresh_state()
    course, best = gone_on(folder, mine, replace(COURSE, update=0), allow_changes=False)
    return mine, course, best


def test_one_goes_on_from_what_was_saved(state, tmp_path, clock):
    keeper = keeper_of(state, tmp_path, clock)
    keeper.improved()
    keeper.save(COURSE)
    mine, course, best = on(tmp_path)
    assert course == replace(COURSE, changes=())
    assert all(torch.equal(value, tensors_of(mine)[name]) for name, value in tensors_of(state).items())
    assert best.keys() == state.model.state_dict().keys()
    assert all(torch.equal(best[name], value) for name, value in state.model.state_dict().items())


def test_the_best_weights_are_a_copy(tmp_path, clock):
    mine = fresh_state()
    keeper = keeper_of(mine, tmp_path, clock)
    keeper.improved()
    before = {name: value.clone() for name, value in keeper.best_weights.items()}
    with torch.no_grad():
        for parameter in mine.model.parameters():
            parameter.add_(1)
    assert all(torch.equal(keeper.best_weights[name], value) for name, value in before.items())


def damage(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_without_a_usable_state_a_run_is_fresh(state, tmp_path, clock, capsys):
    keeper = keeper_of(state, tmp_path, clock)
    for update in (1, 2):
        keeper.save(at(update)())
    for path in pausing.states(tmp_path):
        damage(path)
    mine, course, best = on(tmp_path)
    assert (course.update, best) == (0, {})
    assert all(
        torch.equal(value, tensors_of(fresh_state())[name]) for name, value in tensors_of(mine).items()
    )
    assert capsys.readouterr().err.count("is damaged") == 2


def test_states_that_can_not_be_used_do_not_push_out_new_ones(state, tmp_path, clock, capsys):
    """Both are damaged and of later updates than the first ones that the run saves when it begins anew."""
    keeper = keeper_of(state, tmp_path, clock)
    for update in (7, 8):
        keeper.save(at(update)())
    for path in pausing.states(tmp_path):
        damage(path)
    on(tmp_path)
    keeper.save(at(1)())
    assert on(tmp_path)[1].update == 1
    keeper.save(at(2)())
    assert [pausing.read_course(path).update for path in pausing.states(tmp_path)] == [2, 1]


def test_a_damaged_state_does_not_push_out_the_one_that_was_gone_on_from(state, tmp_path, clock, capsys):
    keeper = keeper_of(state, tmp_path, clock)
    for update in (5, 7):
        keeper.save(at(update)())
    damage(pausing.find(tmp_path))
    assert on(tmp_path)[1].update == 5
    keeper.save(at(6)())
    assert [pausing.read_course(path).update for path in pausing.states(tmp_path)] == [6, 5]


def test_the_same_update_saved_twice_keeps_the_one_before(state, tmp_path, clock):
    """A run that is stopped twice during the test images, say."""
    keeper = keeper_of(state, tmp_path, clock)
    for update, seconds in ((1, 1.0), (2, 2.0), (2, 3.0)):
        keeper.save(replace(COURSE, update=update, seconds=seconds))
    found = [pausing.read_course(path) for path in pausing.states(tmp_path)]
    assert [(course.update, course.seconds) for course in found] == [(2, 3.0), (1, 1.0)]


def test_a_state_that_goes_while_one_looks_is_borne(state, tmp_path, clock, monkeypatch):
    """Who asks where a run is may be just behind the run itself."""
    keeper = keeper_of(state, tmp_path, clock)
    for update in (1, 2):
        keeper.save(at(update)())
    older = pausing.states(tmp_path)[1]
    original = type(older).stat

    def stat(path, **options):
        if path.name == older.name:
            raise FileNotFoundError(errno.ENOENT, "gone")
        return original(path, **options)

    monkeypatch.setattr(type(older), "stat", stat)
    assert pausing.find(tmp_path).name.startswith("state-000000002-")


def test_what_a_killed_process_left_half_written_goes_and_nothing_else(tmp_path):
    gone = [
        ".state-000000001-ab.safetensors.xyz",
        ".record.json.abc",
        ".last.safetensors.q",
        ".outcome.json.1",
    ]
    stays = ["state-000000001-ab.safetensors", "record.json", ".claim-0001.json.x", "notes.txt", ".hidden"]
    for name in (*gone, *stays):
        (tmp_path / name).touch()
    clean(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(stays)
    clean(tmp_path / "nothing")
