"""A thread that is kept, and calls that whoever comes first makes."""

from __future__ import annotations

import threading

import pytest

from icis_deploy.common.background_thread import BackgroundThread


@pytest.fixture
def thread():
    return BackgroundThread("test")


@pytest.fixture
def occupied(thread):
    """The thread, which does something else until the test ends."""
    goes_on = threading.Event()
    thread.begin(goes_on.wait)
    yield thread
    goes_on.set()
    thread.wait()


def test_calls_are_made_by_one_thread_in_the_order_in_which_they_were_begun(thread):
    made, in_thread = [], threading.Event()

    def note(number):
        made.append((number, threading.get_ident()))
        in_thread.set()

    calls = [thread.begin(lambda number=number: note(number)) for number in range(5)]
    in_thread.wait(10)
    thread.wait()
    [call.result() for call in calls]

    assert [number for number, _ in made] == [0, 1, 2, 3, 4]
    assert len({ident for _, ident in made} - {threading.get_ident()}) == len({ident for _, ident in made}) == 1


def test_a_call_that_the_thread_has_not_come_to_is_made_by_whoever_asks_for_it(occupied):
    call = occupied.begin(threading.get_ident)
    assert call.result() == threading.get_ident()
    assert call.result() == threading.get_ident()


def test_a_claimed_call_is_made_once(occupied):
    made = []
    call = occupied.begin(lambda: made.append(1))
    call.claim()
    call.claim()
    call.result()
    assert made == [1]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_what_a_call_raises_is_raised_where_its_result_is_asked_for(thread, occupied, error):
    def fail():
        raise error

    claimed = occupied.begin(fail)
    claimed.claim()
    with pytest.raises(type(error)):
        claimed.result()


def test_what_a_call_raises_in_the_thread_is_raised_where_its_result_is_asked_for(thread):
    raised = threading.Event()

    def fail():
        raised.set()
        raise ValueError("no")

    call = thread.begin(fail)
    raised.wait(10)
    with pytest.raises(ValueError, match=r"^no$"):
        call.result()


def test_without_a_thread_a_call_is_made_at_once(thread, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        made = []
        call = thread.begin(lambda: made.append(threading.get_ident()))
        assert made == [threading.get_ident()]
        call.result()
        with pytest.raises(ZeroDivisionError):
            thread.begin(lambda: 1 / 0).result()
    thread.begin(lambda: made.append(0)).result()
    assert made[1:] == [0]


def test_waiting_ends_when_no_call_is_running_or_to_come(thread):
    started, goes_on, done = threading.Event(), threading.Event(), []

    def slow():
        started.set()
        goes_on.wait(10)
        done.append(1)

    thread.wait()  # before the first call there is nothing to wait for
    thread.begin(slow)
    thread.begin(lambda: done.append(2))
    started.wait(10)
    threading.Timer(0.05, goes_on.set).start()
    thread.wait()
    assert done == [1, 2]
