"""A signal sets a flag, which is looked at where a state can be saved."""

import os
import signal
from threading import Thread

import pytest

from dcvit.stopping import ASKING, listening


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
    """What handles signals is as before, whatever a test does."""
    before = {number: signal.getsignal(number) for number in ASKING}
    yield
    assert {number: signal.getsignal(number) for number in ASKING} == before


@pytest.mark.parametrize("number", ASKING, ids=lambda number: number.name)
def test_a_signal_is_heard_by_name(number):
    with listening() as stopped:
        assert stopped() == ""
        send(number)
        assert stopped() == number.name
        assert stopped() == number.name


def test_the_first_signal_is_the_reason():
    with listening() as stopped:
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stopped() == "SIGUSR1"


def test_the_reason_is_known_afterwards():
    with listening() as stopped:
        send(signal.SIGTERM)
    assert stopped() == "SIGTERM"


def test_a_second_ctrl_c_does_not_wait():
    with listening() as stopped:
        send(signal.SIGINT)
        assert stopped() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_ctrl_c_after_another_signal_is_the_first_one():
    with listening() as stopped:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stopped() == "SIGTERM"


def test_a_patient_one_is_asked_as_often_as_one_likes():
    with listening(patient=True) as stopped:
        for _ in range(3):
            send(signal.SIGINT)
        assert stopped() == "SIGINT"


def test_only_what_was_asked_for_is_listened_to():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append("elsewhere"))
    try:
        with listening((signal.SIGTERM,)) as stopped:
            send(signal.SIGINT)
            assert stopped() == ""
            send(signal.SIGTERM)
            assert stopped() == "SIGTERM"
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["elsewhere"]


@pytest.mark.parametrize(
    "how", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None], ids=["default", "ignored", "ours"]
)
def test_the_handlers_from_before_are_put_back_after_an_error(how):
    before = signal.signal(signal.SIGUSR2, how)
    try:
        with pytest.raises(KeyError), listening():
            raise KeyError
        assert signal.getsignal(signal.SIGUSR2) == how
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_inside_of_each_other_the_inner_one_hears():
    with listening() as outer:
        with listening() as inner:
            send(signal.SIGTERM)
        assert (outer(), inner()) == ("", "SIGTERM")
        send(signal.SIGUSR1)
        assert outer() == "SIGUSR1"


def test_in_another_thread_nothing_changes():
    found = []

    def elsewhere():
        with listening() as stopped:
            found.append((stopped(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [("", before)]
