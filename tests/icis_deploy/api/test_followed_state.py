"""What an update follows, said by a bundle, by what was noted of it, or by the complete update before."""

from __future__ import annotations

import json

import numpy as np
import pytest

import icis_deploy
from icis_deploy.api.followed_state import binding_to
from icis_deploy.cli.main import run
from icis_deploy.errors import CorruptFileError, LoadError, UpdateOrderError, UsageError, WrongBaseError
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import save_update
from icis_deploy.updates.signing import keygen, sign
from testing.bundles import make_update, trust, write_bundle


@pytest.fixture
def keys(tmp_path):
    return keygen(tmp_path / "key")


@pytest.fixture
def folder(tmp_path, keys):
    folder = write_bundle(tmp_path / "bundle", arbiter=True)
    trust(folder, keys.public_path)
    return folder


@pytest.fixture
def complete(tmp_path, keys):
    """A signed update that lists all added classes, of version 3."""
    save_update(make_update("okapi", "zebra"), tmp_path / "complete.icis")
    icis_deploy.sign(tmp_path / "complete.icis", key=keys.private_path, version=3, complete=True)
    return tmp_path / "complete.icis"


def noted(folder, path, capsys):
    """Write what `classes` prints of a bundle."""
    capsys.readouterr()
    assert run(["classes", str(folder), "--format", "json"]) == 0
    path.write_text(capsys.readouterr().out)
    return path


def delta(tmp_path, keys, bundle, name="gnu", version=4):
    path = tmp_path / f"{name}.icis"
    save_update(make_update(name), path)
    return icis_deploy.sign(path, key=keys.private_path, version=version, bundle=bundle).path


def test_what_was_noted_of_a_bundle_says_the_same_as_the_bundle(folder, complete, tmp_path, keys, capsys):
    Device.open(folder).apply(complete)
    note = noted(folder, tmp_path / "state.json", capsys)

    assert binding_to(note, complete=False) == binding_to(folder, complete=False)
    assert binding_to(note, complete=True) == binding_to(folder, complete=True)
    assert Device.open(folder).apply(delta(tmp_path, keys, note)).content.follows.version == 3


def test_what_was_noted_binds_to_the_bundle_and_to_the_state(folder, complete, tmp_path, keys, capsys):
    note = noted(folder, tmp_path / "state.json", capsys)
    update = delta(tmp_path, keys, note, version=5)
    device = Device.open(folder)
    device.apply(complete)

    with pytest.raises(UpdateOrderError):
        device.apply(update)
    other = write_bundle(tmp_path / "other", capacity=7, arbiter=True)
    trust(other, keys.public_path)
    with pytest.raises(WrongBaseError, match="signed for other bundles"):
        Device.open(other).apply(update)


@pytest.mark.parametrize("has_arbiter", [False, True])
def test_a_complete_update_says_what_comes_after_it(has_arbiter, folder, tmp_path, keys):
    fields = {"arbiter": np.array([[0.5, 0, 0, 0, 1], [0, 0, 0, 0, 0]], np.float32)} if has_arbiter else {}
    first = tmp_path / "first.icis"
    save_update(make_update("zebra", "okapi", **fields), first)
    icis_deploy.sign(first, key=keys.private_path, version=3, complete=True)
    update = delta(tmp_path, keys, first)
    device = Device.open(folder)

    with pytest.raises(UpdateOrderError, match="Deliver version 3 first"):
        device.apply(update)
    device.apply(first)
    device.apply(update)
    assert set(device.classes()[3:]) == {"zebra", "okapi", "gnu"}


def test_the_command_names_it_either_way(folder, complete, tmp_path, keys, capsys):
    note = noted(folder, tmp_path / "state.json", capsys)
    save_update(make_update("gnu"), tmp_path / "gnu.icis")

    for option in ("--follows", "--bundle"):
        arguments = ["sign", str(tmp_path / "gnu.icis"), "--key", str(keys.private_path), option, str(note)]
        assert run([*arguments, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["follows"]["version"] == 0


def test_an_absurd_version_is_one_beyond_the_state_that_it_follows(folder, complete, tmp_path, keys):
    with pytest.raises(UsageError, match=r"more than 2\^32 above 3"):
        delta(tmp_path, keys, complete, version=2**32 + 4)
    assert delta(tmp_path, keys, complete, version=2**32 + 3)


def test_what_says_nothing_of_a_state_is_refused(complete, tmp_path, keys):
    change = tmp_path / "change.icis"
    save_update(make_update("gnu"), change)
    sign(change, keys.private_path)
    with pytest.raises(UsageError, match="it is no complete class update"):
        binding_to(change, complete=False)

    broken = tmp_path / "broken.json"
    for text in ("", "[]", "{}", '{"version": 1, "digest": "x"}', '{"version": "1"}', '{"payloadType": 3}'):
        broken.write_text(text)
        with pytest.raises(CorruptFileError, match="says nothing of the state"):
            binding_to(broken, complete=False)
    with pytest.raises(LoadError, match="Cannot read the state"):
        binding_to(tmp_path / "missing", complete=False)
