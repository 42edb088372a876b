"""Fixtures that several test folders share."""

import gc
import os
import sys
from collections.abc import Generator, Iterator
from functools import cache, lru_cache
from pathlib import Path

# Before anything imports torch: on tiny models the threads of a pool only wait for each other, for seconds on a busy
# machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's thread for it goes on after its cluster: the tracebacks that it formats every few seconds take the parser from
# tests that parse (a SystemError of CPython 3.11).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import hypothesis
import pytest

from icis_deploy.common.arrays import Float32
from testing.tiny_project import TinyProject, write_tiny_project

MEMORY = Path("/dev/shm")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGENET_MOBILENET = REPOSITORY.parent / "shared" / "data" / "imagenet-mobilenet-v2"


def pytest_configure() -> None:
    """Keep temporary files in memory where there is room.

    A device syncs whatever it writes, which takes a disk 10 ms, thousands of times in these tests. What a disk makes of
    it no test can see.
    """
    if has_room(MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def has_room(folder: Path) -> bool:
    """Say whether the temporary files of the tests fit into a folder, and the programs among them can run there."""
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize >= 4 << 30


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests, and no garbage meanwhile: to look for it in all that is kept takes a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first: begun last, one of them would keep a single process busy and the others idle."""
    long_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long_files)


@pytest.fixture(scope="module", autouse=True)
def what_other_files_left() -> None:
    """Set aside for the garbage collector: each measurement collects first, and looked through it for a second."""
    # Why: docs/decisions/0139.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def torchs_table_where_it_is_made(request: pytest.FixtureRequest) -> None:
    """Kept from the test after the first one that converts a model; nothing of torch is imported for it."""
    if "torch.onnx._internal.exporter._registration" in sys.modules:
        request.getfixturevalue("torchs_table")


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_session() -> Iterator[None]:
    """Where each core has a process: a thread of a session that waits for another by spinning takes its core."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import onnxruntime

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc] # onnxruntime has no types
        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", Options)
        yield


@pytest.fixture(scope="session")
def torchs_table() -> Iterator[None]:
    """Keep torch's table of ONNX operators: each conversion would make all 2,000 entries again, for half a second."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield  # of another torch, which may keep it itself
        return
    made = cache(ONNXRegistry.from_torchlib)

    def from_torchlib(*version: int, **named: int) -> ONNXRegistry:
        table, copy = made(*version, **named), ONNXRegistry()
        copy.__dict__.update(table.__dict__)
        copy.functions = {name: list(found) for name, found in table.functions.items()}
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield


@pytest.fixture(scope="session", autouse=True)
def small_neutral_images() -> Iterator[None]:
    """Draw each small neutral image once: every export draws the same ones, for a tenth of the time that it takes."""
    from icis_deploy.images import neutral

    draw = neutral._neutral_image
    kept = lru_cache(maxsize=8192)(draw)

    def drawn(index: int, height: int, width: int, seed: int) -> Float32:
        return (kept if height * width <= 1024 else draw)(index, height, width, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neutral, "_neutral_image", drawn)
        yield


@pytest.fixture(scope="session")
def imagenet_mobilenet() -> Path:
    """The folder of a real classifier with photos and descriptors, which is kept next to the project."""
    if not (IMAGENET_MOBILENET / "model.onnx").is_file():
        pytest.skip(f"the real classifier is not at {IMAGENET_MOBILENET}")
    return IMAGENET_MOBILENET


@pytest.fixture(scope="session")
def no_gpu() -> None:
    """Nothing, on a machine without a GPU; a test of what is said there is skipped on any other."""
    from icis_deploy.errors import MissingDependencyError
    from icis_deploy.runtime.sessions.cuda_calls import load_cuda

    try:
        load_cuda()
    except MissingDependencyError:
        return
    pytest.skip("this machine has a GPU")


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A tiny classifier with class list, descriptors and images; not to be written to."""
    return write_tiny_project(tmp_path_factory.mktemp("tiny"))
