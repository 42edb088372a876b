from __future__ import annotations

import sys

import pytest

from icis_deploy.errors import BundleError, ClassConflictError, CorruptFileError, SignatureError, UsageError
from icis_deploy.runtime import operations
from icis_deploy.runtime.operations import ListedClass
from testing.bundles import backbone, files_in, make_update, write_signed


@pytest.fixture
def update(tmp_path, keys):
    return write_signed(tmp_path / "new.icis", make_update("okapi", "zebra"), keys.private_path)


def test_an_operators_day(bundle_folder, update, keys):
    assert operations.history(bundle_folder) == ()
    applied = operations.apply(update, bundle_folder)
    assert operations.disable(bundle_folder, "dog")
    assert not operations.disable(bundle_folder, "dog")
    assert operations.disable(bundle_folder, "zebra")
    assert operations.enable(bundle_folder, "zebra")

    listing = operations.classes(bundle_folder)
    assert (listing.version, listing.capacity, listing.num_free_slots) == (1, 4, 2)
    assert listing.classes[1] == ListedClass(name="dog", slot=None, is_enabled=False)
    assert listing.classes[3:] == (
        ListedClass(name="okapi", slot=0, is_enabled=True, origin="signed", signed_by=keys.key_id),
        ListedClass(name="zebra", slot=1, is_enabled=True, origin="signed", signed_by=keys.key_id),
    )
    entries = operations.history(bundle_folder)
    assert entries[0] == applied.entry
    assert [(entry.action, entry.class_name, entry.signed_by) for entry in entries] == [
        ("apply", None, keys.key_id),
        ("disable", "dog", None),
        ("disable", "zebra", None),
        ("enable", "zebra", None),
    ]
    assert operations.rollback(bundle_folder).version == 0
    assert len(operations.classes(bundle_folder).classes) == 3


def test_rollback_gets_a_bundle_out_of_a_damaged_state(bundle_folder, update):
    operations.apply(update, bundle_folder)
    (path,) = (bundle_folder / "state").glob("slots-*")
    path.write_bytes(b"")

    with pytest.raises(CorruptFileError, match="is damaged"):
        operations.classes(bundle_folder)
    operations.rollback(bundle_folder)
    assert len(operations.classes(bundle_folder).classes) == 3


def test_rollback_runs_no_model_that_is_damaged(bundle_folder, update):
    operations.apply(update, bundle_folder)
    model = bundle_folder / "model.onnx"
    data = bytearray(model.read_bytes())
    data[data.index(backbone().tobytes()) + 3] ^= 0x40  # one weight, so that the model still loads and runs
    model.write_bytes(data)
    before = files_in(bundle_folder)

    with pytest.raises(CorruptFileError, match="was changed or damaged"):
        operations.rollback(bundle_folder)
    assert files_in(bundle_folder) == before


def test_what_is_refused_leaves_the_bundle_as_it_was(bundle_folder, tmp_path, keys):
    (bundle_folder / "trust" / keys.public_path.name).unlink()
    path = write_signed(tmp_path / "new.icis", make_update("okapi"), keys.private_path)
    before = files_in(bundle_folder)

    with pytest.raises(SignatureError, match=r"trusted are none\. No key is trusted here yet: put the signer.s \.pub"):
        operations.apply(path, bundle_folder)
    with pytest.raises(UsageError, match="nothing to roll back to"):
        operations.rollback(bundle_folder)
    with pytest.raises(ClassConflictError, match="knows no class 'unicorn'"):
        operations.disable(bundle_folder, "unicorn")
    assert files_in(bundle_folder) == before


@pytest.mark.parametrize("operation", [operations.history, operations.classes, operations.rollback])
def test_what_is_no_bundle_is_refused(operation, tmp_path):
    with pytest.raises(BundleError, match=r"There is no bundle at .*nowhere"):
        operation(tmp_path / "nowhere")


def test_only_what_tests_slots_needs_a_runtime(bundle_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    assert len(operations.classes(bundle_folder).classes) == 3
    assert operations.disable(bundle_folder, "dog")
    assert operations.enable(bundle_folder, "dog")
    assert len(operations.history(bundle_folder)) == 2
