"""Paths that are none, or lead to no plain file: each gives one error of icis-deploy, or works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from icis_deploy.cli.main import run
from icis_deploy.errors import BundleError, ICISDeployError, LoadError, UsageError
from icis_deploy.runtime import operations
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import load_update
from icis_deploy.updates.signing import keygen, rotate_keys, sign, verify_update
from testing.bundles import files_in, make_update, write_bundle

ODD = [
    "a\0b",
    "x" * 5000,
    "a\nb",
    "a\udcffb",
    "",
    "/dev/null",
    "/dev/zero",
    "/proc/self",
    "loop",
    "no/such/folder/file",
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_path_crashes_anything_that_a_device_or_a_publisher_does(
    odd, bundle_folder, keys, signed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    good = tmp_path / "good.icis"
    good.write_bytes(signed(make_update("okapi")))
    device, before = Device.open(bundle_folder, num_threads=1), files_in(bundle_folder)
    path = Path(odd)
    for refused in (
        lambda: device.apply(odd),
        lambda: device.replace(odd),
        lambda: Device.open(odd),
        lambda: operations.classes(path),
        lambda: load_update(path),
        lambda: sign(path, keys.private_path),
        lambda: sign(good, path),
        lambda: verify_update(good, [path]),
        lambda: rotate_keys([path], keys.private_path, out=tmp_path / "keys.icis", version=1),
    ):
        with pytest.raises(ICISDeployError):
            refused()
    assert files_in(bundle_folder) == before
    for made in (keygen, lambda path: sign(good, keys.private_path, out=path)):
        try:
            made(path)
        except ICISDeployError:
            pass
        else:
            path.unlink()


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a pipe"), (os.mkdir, "a folder"), (lambda path: path.symlink_to("/dev/zero"), "a device")],
)
def test_an_update_that_is_no_plain_file_is_refused_unread_and_without_waiting(make, kind, bundle_folder, tmp_path):
    make(tmp_path / "strange")

    with pytest.raises(LoadError, match=f"Cannot read the class update .*strange: it is {kind} and no plain file"):
        Device.open(bundle_folder).apply(tmp_path / "strange")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "slots.safetensors", "state/journal.json"])
def test_a_pipe_in_the_place_of_any_file_of_a_bundle_is_refused_without_waiting(name, bundle_folder, signed):
    Device.open(bundle_folder).apply(signed(make_update("okapi")))
    (bundle_folder / name).unlink()
    os.mkfifo(bundle_folder / name)

    with pytest.raises(BundleError, match=f"{name}.*: it is a pipe and no plain file"):
        Device.open(bundle_folder)


def test_a_pipe_in_the_place_of_a_slot_table_is_refused_without_waiting(bundle_folder, signed):
    Device.open(bundle_folder).apply(signed(make_update("okapi")))
    (table,) = (bundle_folder / "state").glob("slots-*")
    table.unlink()
    os.mkfifo(table)

    with pytest.raises(BundleError, match=r"The journal names .*slots-\w+.safetensors, .*: it is a pipe and no plain"):
        Device.open(bundle_folder)


def test_an_update_that_is_a_link_to_elsewhere_is_read_like_any_file(bundle_folder, signed, tmp_path):
    (tmp_path / "elsewhere").write_bytes(signed(make_update("okapi")))
    (tmp_path / "link").symlink_to("elsewhere")
    assert Device.open(bundle_folder).apply(tmp_path / "link").entry.version == 1
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(LoadError, match=r"Cannot read the class update .*dangling: No such file"):
        Device.open(bundle_folder).apply(tmp_path / "dangling")


def test_a_line_break_in_a_path_makes_no_second_line(bundle_folder, tmp_path, capsys):
    path = tmp_path / "a\nError: all is well"
    path.write_bytes(b"no update")
    assert run(["apply", str(path), "--to", str(bundle_folder)]) == 6
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("update", [None, 3, ["8.icis"], object()], ids=["nothing", "a number", "a list", "an object"])
def test_what_is_no_update_is_named_by_its_type(update, tmp_path):
    device = Device.open(write_bundle(tmp_path / "bundle"))

    with pytest.raises(UsageError, match=rf"^The update is of type '{type(update).__name__}'\. Give the path"):
        device.apply(update)

    assert device.history() == ()


def test_a_path_of_any_kind_is_one(tmp_path):
    class Named:
        def __fspath__(self):
            return str(tmp_path / "8.icis")

    with pytest.raises(LoadError, match=r"8\.icis: No such file"):
        Device.open(write_bundle(tmp_path / "bundle")).apply(Named())
