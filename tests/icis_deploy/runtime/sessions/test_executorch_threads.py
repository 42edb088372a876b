"""ExecuTorch has one pool of threads in a process: it is set once, and another number is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from icis_deploy.errors import UsageError
from icis_deploy.runtime.sessions import executorch_session


def test_a_second_number_of_threads_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(executorch_session, "_pool_threads", [])
    sizes = [8]
    library = SimpleNamespace(_threadpool_get_thread_count=lambda: sizes[-1], _unsafe_reset_threadpool=sizes.append)
    executorch_session._set_threads(library, 2)
    executorch_session._set_threads(library, 2)
    assert sizes == [8, 2]
    with pytest.raises(UsageError, match=r"It was set to 2, and 3 were asked for\. Give `num_threads=2`, leave it out"):
        executorch_session._set_threads(library, 3)
    assert sizes == [8, 2]
