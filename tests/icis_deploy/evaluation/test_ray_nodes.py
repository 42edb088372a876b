"""A cluster of two nodes of which one dies, and a driver that dies: the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.images.loading import load_image_list

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours to fix


@pytest.fixture
def images(tiny_project, tmp_path):
    listed = load_image_list(tiny_project.images)
    lines = ["file,class", *(f"{path},{label}" for path, label in zip(listed.paths, listed.labels, strict=True))]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.csv"


def test_a_node_that_dies_changes_no_byte(bundle, images, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(icis_deploy.__file__).parent.parent))
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "300")  # 30 by default: too few where others have the cores
    monkeypatch.setattr("icis_deploy.evaluation.measuring.INPUTS_OF_A_PIECE", 2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = []
    try:
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)

        def lose_it(_done, _total):
            if not lost:
                lost.append(second)
                cluster.remove_node(second, allow_graceful=False)

        options = icis_deploy.EvaluateOptions(engine="ray", batch_size=2)
        report = icis_deploy.evaluate(bundle, images=images, options=options, progress=lose_it)
    finally:
        ray.shutdown()
        cluster.shutdown()

    assert lost
    assert report.to_json() == icis_deploy.evaluate(bundle, images=images).to_json()


KILLED_DRIVER = """
import os, signal, sys
import icis_deploy
from icis_deploy.evaluation import checkpoint, measuring
checkpoint.ROWS_OF_A_FILE = measuring.INPUTS_OF_A_PIECE = 4
def kill(done, total):
    if done >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
options = icis_deploy.EvaluateOptions(engine="ray", checkpoint=sys.argv[3])
icis_deploy.evaluate(sys.argv[1], images=sys.argv[2], options=options, progress=kill)
"""


def test_a_driver_that_dies_goes_on_where_it_was_without_its_cluster(bundle, images, tmp_path):
    folder = tmp_path / "outcomes"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_DRIVER, str(bundle), str(images), str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(icis_deploy.__file__).parent.parent)},
        capture_output=True,
        check=False,
    )

    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list(folder.glob("outcomes-*.parquet"))
    resumed = icis_deploy.evaluate(bundle, images=images, options=icis_deploy.EvaluateOptions(checkpoint=folder))
    assert resumed.to_json() == icis_deploy.evaluate(bundle, images=images).to_json()
