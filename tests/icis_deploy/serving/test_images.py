"""Images that are sent to a server: one as a body, several as a form."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

import icis_deploy
from icis_deploy.runtime.device import Device
from testing.bundles import write_bundle
from testing.serving import served, wait_for


@pytest.fixture(scope="module")
def server(tiny_project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "bundle"
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        out=folder,
        options=icis_deploy.ExportOptions(head="updatable", capacity=4, preprocess=tiny_project.preprocess),
    )
    with served(folder, "--max-batch", 3, "--name", "tiny") as running:
        yield running, Device.open(folder)


@pytest.fixture(scope="module")
def photos(tiny_project):
    return [(name, (tiny_project.images.parent / f"{name}.png").read_bytes()) for name in ("class00", "class41")]


def form(files, *, field="images"):
    """Return body and headers of a form with files."""
    parts = [
        f'--xyz\r\nContent-Disposition: form-data; name="{field}"{name}\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files
    ]
    return b"".join([*parts, b"--xyz--\r\n"]), {"Content-Type": "multipart/form-data; boundary=xyz"}


def named(files):
    return [(f'; filename="{name}"', data) for name, data in files]


def as_json(prediction):
    return prediction.to_dict()["classes"]


def test_one_image_as_a_body(server, photos):
    running, device = server
    (expected,) = device.predict([photos[0][1]], top=3)

    status, _, body = running.ask("POST", "/predict?top=3", photos[0][1], {"Content-Type": "image/png"})

    answer = json.loads(body)
    assert status == 200
    assert (answer["model_name"], answer["model_version"]) == ("tiny", "0")
    assert [each["classes"] for each in answer["predictions"]] == [as_json(expected)]


def test_several_images_as_a_form_in_their_order(server, photos):
    running, device = server
    expected = device.predict([data for _, data in photos], top=5)

    status, _, body = running.ask("POST", "/predict", *form(named(photos)))

    predictions = json.loads(body)["predictions"]
    assert status == 200
    assert [each["image"] for each in predictions] == ["class00", "class41"]
    assert [each["classes"] for each in predictions] == [as_json(each) for each in expected]


def png(width, height):
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((height, width), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_bad_images_are_told_what_is_wrong(server, photos):
    running, _ = server
    photo = photos[0][1]
    kind = {"Content-Type": "image/png"}
    cases = [
        (b"", kind, "/predict", "empty"),
        (b"no image", kind, "/predict", "not an image"),
        (photo[: len(photo) // 2], kind, "/predict", "Cannot read the image"),
        (png(4097, 4097), kind, "/predict", "at most 16777216 are taken"),
        (photo, kind, "/predict?top=0", "top is '0'"),
        (photo, kind, "/predict?top=-1", "top is '-1'"),
        (*form(named([("a", photo)] * 4)), "/predict", "Maximum number of files is 3"),
        (*form([("", photo)]), "/predict", "The form cannot be read"),
        (*form([]), "/predict", "no file"),
        (*form(named([("good", photo), ("bad", b"no image")])), "/predict", "bad is not an image"),
        (photo, {"Content-Type": "multipart/form-data"}, "/predict", "The form cannot be read"),
        (b"--xyz\r\nno form", form([])[1], "/predict", "form"),
    ]
    for body, headers, path, said in cases:
        status, _, text = running.ask("POST", path, body, headers)
        answer = json.loads(text)
        assert status == 400, (said, answer)
        assert said in answer["error"], answer

    assert not running.logged("request failed")
    assert running.ask("POST", "/predict", photo, kind)[0] == 200


def test_what_a_library_warns_of_is_logged_as_everything_else(server):
    running, _ = server
    file = io.BytesIO()
    damaged = b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 200
    PIL.Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(file, "JPEG", exif=damaged)

    assert running.ask("POST", "/predict", file.getvalue(), {"Content-Type": "image/jpeg"})[0] == 200
    wait_for(lambda: any("Corrupt EXIF data" in str(line) for line in running.logs))
    assert not running.logged("no JSON")


def test_a_model_that_takes_arrays_alone_says_so(tmp_path):
    with served(write_bundle(tmp_path / "bundle")) as running:
        status, _, body = running.ask("POST", "/predict", png(9, 9))

    assert (status, json.loads(body)["expected"]) == (400, "arrays as the model takes them")
    assert str(tmp_path) not in body.decode()
