"""A call in a thread of its own: its result or its error comes where it is asked for."""

from __future__ import annotations

import threading

import pytest

from icis_deploy.common.background_call import BackgroundCall
from icis_deploy.errors import SelfTestError


def test_it_runs_while_its_caller_goes_on():
    gone_on = threading.Event()
    call = BackgroundCall(lambda: gone_on.wait(timeout=60))

    gone_on.set()
    assert call.result() is True
    assert call.seconds > 0


@pytest.mark.parametrize("error", [SelfTestError("wrong rows"), KeyboardInterrupt()])
def test_what_it_raises_is_raised_where_the_result_is_asked_for(error):
    def fail():
        raise error

    call = BackgroundCall(fail)
    with pytest.raises(type(error)) as raised:
        call.result()
    assert raised.value is error


def test_without_a_thread_to_be_had_it_runs_when_the_result_is_asked_for(monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads = []
    call = BackgroundCall(lambda: threads.append(threading.current_thread()))

    assert threads == []
    assert call.result() is None
    assert threads == [threading.current_thread()]
    assert call.seconds > 0
