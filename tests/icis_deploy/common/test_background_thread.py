"""A thread that is kept, and calls that whoever comes first makes."""

from __future__ import annotations

import _thread
import gc
import os
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from icis_deploy.common.background_thread import BackgroundThread
from testing.interruptions import Interruptions


@pytest.fixture
def thread():
    return BackgroundThread()


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


def test_a_call_that_is_taken_in_time_is_not_made(thread):
    goes_on, made = threading.Event(), []
    thread.begin(goes_on.wait)
    call = thread.begin(lambda: made.append(1))
    assert call.take()
    assert not call.take()
    goes_on.set()
    thread.wait()
    assert made == []


def test_a_call_that_was_made_cannot_be_taken(thread):
    call = thread.begin(int)
    call.result()
    assert not call.take()


def test_what_a_call_raised_is_raised_to_whoever_would_take_it(thread):
    call = thread.begin(lambda: 1 / 0)
    thread.wait()
    with pytest.raises(ZeroDivisionError):
        call.take()


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_what_a_call_raises_is_raised_where_its_result_is_asked_for(thread, occupied, error):
    def fail():
        raise error

    call = occupied.begin(fail)
    for _ in range(2):
        with pytest.raises(type(error)):
            call.result()


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
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", refuse)
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


def test_the_thread_ends_with_its_object():
    thread, idents = BackgroundThread(), []
    thread.begin(lambda: idents.append(threading.get_ident()))
    thread.wait()
    assert idents[0] in sys._current_frames()
    del thread
    gc.collect()
    end = time.monotonic() + 60
    while idents[0] in sys._current_frames() and time.monotonic() < end:
        time.sleep(0.001)
    assert idents[0] not in sys._current_frames()


def test_a_forked_process_gets_a_thread_of_its_own(thread):
    thread.begin(int).result()
    thread.wait()
    child = os.fork()
    if not child:
        code = 1
        try:
            thread.wait()
            call = thread.begin(threading.get_ident)
            thread.wait()
            code = 0 if call.result() != threading.get_ident() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_a_call_returned_does_not_stay_with_the_thread(thread):
    made = threading.Event()

    class Value:
        pass

    def make():
        made.set()
        return Value()

    call = thread.begin(make)
    made.wait(10)
    reference = weakref.ref(call.result())
    del call
    end = time.monotonic() + 60
    while reference() is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert reference() is None


def test_an_interruption_at_any_moment_leaves_nothing_that_a_later_call_waits_for(thread):
    random, num_interrupted = np.random.default_rng(0), 0
    with Interruptions() as interruptions:
        for _ in range(1000):
            try:
                interruptions.after(random.uniform(1e-6, 1e-4))
                try:
                    for _ in range(20):
                        thread.begin(int).result()
                        thread.wait()
                finally:
                    interruptions.end()
            except KeyboardInterrupt:
                num_interrupted += 1
            thread.wait()
            assert thread.begin(int).result() == 0
    assert num_interrupted > 300
