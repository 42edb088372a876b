"""Evaluation on a cluster of this machine: the same bytes as in one process, whatever dies meanwhile."""

import os
import shutil
import signal
from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.errors import ImageError
from icis_deploy.images.loading import load_image_list

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours to fix

NUM_IMAGES = 120


@pytest.fixture
def images(tiny_project, tmp_path):
    listed = load_image_list(tiny_project.images)
    lines = ["file,class"]
    for index in range(NUM_IMAGES):
        path, label = listed.paths[index % len(listed.paths)], listed.labels[index % len(listed.paths)]
        shutil.copy(path, tmp_path / f"{index:03}.png")
        lines.append(f"{index:03}.png,{label}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.csv"


@pytest.fixture(scope="module")
def cluster():
    os.environ["PYTHONPATH"] = str(Path(icis_deploy.__file__).parent.parent)
    # 30 by default: too few where other work has the cores.
    os.environ["RAY_gcs_server_port_wait_time_s"] = "300"  # noqa: SIM112 - its name
    # One of its own: other tests have clusters on this machine at the same time.
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def on_ray(bundle, images, **options):
    return icis_deploy.evaluate(
        bundle, images=images, options=icis_deploy.EvaluateOptions(engine="ray", **options)
    ).to_json()


def test_a_cluster_gives_what_one_process_does(cluster, bundle, images):
    assert on_ray(bundle, images) == icis_deploy.evaluate(bundle, images=images).to_json()


def test_an_image_that_cannot_be_read_is_an_error_of_ours_or_left_out(cluster, bundle, images):
    (images.parent / "017.png").write_bytes(b"no image")

    with pytest.raises(ImageError, match=r"017\.png"):
        on_ray(bundle, images)
    report = on_ray(bundle, images, on_error="skip")
    assert [each["key"] for each in report["skipped"]] == [str(images.parent / "017.png")]
    assert report["num_images"] == NUM_IMAGES - 1


def test_what_a_killed_actor_was_at_is_done_again(cluster, bundle, images, tmp_path):
    import psutil

    killed = []

    def kill_one(done, total):
        actors = [each for each in psutil.process_iter(["cmdline"]) if "_Actor" in " ".join(each.info["cmdline"] or ())]
        if not killed and actors:
            actors[0].send_signal(signal.SIGKILL)
            killed.append(actors[0].pid)

    report = icis_deploy.evaluate(
        bundle,
        images=images,
        options=icis_deploy.EvaluateOptions(engine="ray", batch_size=2),
        progress=kill_one,
    )

    assert killed
    assert report.to_json() == icis_deploy.evaluate(bundle, images=images).to_json()


def test_a_cluster_that_is_not_there_is_said_in_one_line(bundle, images):
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(icis_deploy.errors.RuntimeFailureError, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        on_ray(bundle, images, address="127.0.0.1:1")
