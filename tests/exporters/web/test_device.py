"""The same signed files in a Python and in a JavaScript device: the same classes, logits and refusals."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.bundle.manifest import load_manifest, target_digest
from icis_deploy.errors import ICISDeployError
from icis_deploy.head.class_update import FollowedState
from icis_deploy.head.slots import SlotTable, empty_slots
from icis_deploy.runtime.changes.rules import verify_bytes
from icis_deploy.runtime.device import Device
from icis_deploy.updates.envelope import envelope_of, serialize_envelope
from icis_deploy.updates.signing import KeyPair, keygen, load_private_key, load_public_key, trusted_keys_from_files
from icis_deploy.updates.trusted_keys import TrustedKeys
from scripts.robustness.mutations import MUTATIONS
from testing.bundles import images, make_update, signed_bytes, trust, write_bundle
from tests.exporters.web.javascript import JavaScriptError, Node, NodeDevice, with_web_files

ARBITER = np.array([[0.3, -0.2, 0.1, 0.05, -0.4]] * 2)


def bundle_of(folder: Path, keys: KeyPair, **settings: object) -> Path:
    """Write a small bundle that trusts these keys, for both devices."""
    write_bundle(folder, **settings)
    trust(folder, keys.public_path)
    return with_web_files(folder)


@pytest.fixture
def bundle(tmp_path, keys) -> Path:
    return bundle_of(tmp_path / "bundle", keys)


@pytest.fixture
def device(node: Node, bundle) -> NodeDevice:
    return node.open(bundle)


def refused(call, name: str, match: str) -> None:
    with pytest.raises(JavaScriptError, match=match) as caught:
        call()
    assert caught.value.name == name


@pytest.mark.parametrize("arbiter", [False, True])
@pytest.mark.parametrize("score_kind", ["logits", "probabilities", "log-probabilities"])
def test_the_same_update_gives_the_same_classes_and_logits(tmp_path, node, keys, score_kind, arbiter):
    bundle = bundle_of(tmp_path / "bundle", keys, score_kind=score_kind, arbiter=arbiter)
    update = make_update("okapi", "zebra", version=3, arbiter=ARBITER if arbiter else None)
    data = signed_bytes(update, keys.private_path)
    python, javascript = Device.open(bundle), node.open(bundle)

    python.apply(data)
    applied = javascript.apply(data)

    assert (applied["version"], applied["added"], applied["changed"]) == (3, ["okapi", "zebra"], True)
    assert javascript.classes() == list(python.classes())
    np.testing.assert_allclose(javascript.logits(images()), python.logits(images()).values, rtol=1e-4, atol=1e-5)
    python.rollback()
    javascript.rollback()
    assert javascript.classes() == list(python.classes()) == ["cat", "dog", "owl"]
    np.testing.assert_allclose(javascript.logits(images()), python.logits(images()).values, rtol=1e-4, atol=1e-5)
    assert [line["action"] for line in javascript.history()] == ["apply", "rollback"]


def test_a_fused_bundle_answers_and_takes_no_update(tmp_path, node, keys):
    bundle = bundle_of(tmp_path / "bundle", keys, capacity=0)
    device = node.open(bundle)

    np.testing.assert_allclose(device.logits(images()), Device.open(bundle).logits(images()).values, rtol=1e-5)
    data = signed_bytes(make_update("okapi"), keys.private_path)
    refused(lambda: device.apply(data), "IncompatibleError", "head is fused")


def test_every_changed_bit_is_refused(device, keys):
    data = signed_bytes(make_update("okapi"), keys.private_path)
    before = device.history()

    for offset in range(0, len(data), 7):
        changed = bytearray(data)
        changed[offset] ^= 1 << (offset % 8)
        with pytest.raises(JavaScriptError) as caught:
            device.apply(bytes(changed))
        assert caught.value.is_ours, caught.value.name
    assert device.classes() == ["cat", "dog", "owl"]
    assert device.history() == before


def test_a_version_stays_spent_after_a_rollback_and_a_restart(tmp_path, node, bundle, keys):
    state = tmp_path / "state"
    device = node.open(bundle, state=state)
    for version, name in ((1, "okapi"), (2, "zebra")):
        device.apply(signed_bytes(make_update(name, version=version), keys.private_path))
    device.rollback()

    again = node.open(bundle, state=state)

    assert again.classes() == ["cat", "dog", "owl", "okapi"]
    data = signed_bytes(make_update("gnu", version=2), keys.private_path)
    refused(lambda: again.apply(data), "VersionRollbackError", "has held version 2, so it takes 3")


def test_a_version_beyond_what_a_double_holds_is_compared_exactly(device, keys):
    high = (1 << 62) + 1
    device.apply(signed_bytes(make_update("okapi", version=high), keys.private_path))

    assert int(device.version()) == high
    data = signed_bytes(make_update("gnu", version=high - 1), keys.private_path)
    refused(lambda: device.apply(data), "VersionRollbackError", str(high))
    device.apply(signed_bytes(make_update("gnu", version=high + 1), keys.private_path))


def test_a_file_that_is_in_effect_is_no_error(device, keys):
    data = signed_bytes(make_update("okapi"), keys.private_path)
    first = device.apply(data)

    again = device.apply(data)

    assert (again["changed"], again["entry"]) == (False, first["entry"])
    assert len(device.history()) == 1


def test_what_does_not_fit_is_refused_as_in_python(device, bundle, keys, tmp_path):
    other = keygen(tmp_path / "other.key")
    past = datetime(2020, 1, 1, tzinfo=timezone.utc)
    followed = FollowedState(version=7, digest="0" * 64)
    python = Device.open(bundle)
    for update, key, match in (
        (make_update(*(f"new {index}" for index in range(5))), keys, "adds 5 classes; 4 slots, 0 used"),
        (make_update("cat"), keys, "already knows"),
        (make_update("okapi", removed=("gnu",)), keys, "is in no slot"),
        (make_update("okapi", base_fingerprint="0" * 64), keys, "made for the head 0000000000000000…"),
        (make_update("okapi", targets=("1" * 64,)), keys, "signed for other bundles"),
        (make_update("okapi", follows=followed), keys, "follows version 7"),
        (make_update("okapi", expires=past), keys, "expired at 2020-01-01T00:00:00Z"),
        (make_update("okapi", arbiter=np.ones((1, 5))), keys, "have an arbiter, and this bundle's model takes none"),
        (make_update("okapi"), other, "is signed by"),
    ):
        data = signed_bytes(update, key.private_path)
        with pytest.raises(ICISDeployError, match=match) as caught:
            python.apply(data)
        refused(lambda data=data: device.apply(data), type(caught.value).__name__, match)
    assert device.history() == []


def test_an_update_that_follows_names_this_bundle_or_is_complete(device, bundle, keys):
    digest = target_digest(load_manifest(bundle))
    first = make_update("Bärtierchen 水熊", "okapi", version=1, targets=(digest,))
    table = SlotTable(
        weight=np.zeros((4, 4)), bias=np.full(4, -6e4), class_names=(None,) * 4
    ).apply(first, seen_names=frozenset())  # fmt: skip
    second = make_update("zebra", version=2, follows=FollowedState(version=1, digest=table.digest()))
    third = make_update("gnu", version=3, complete=True)

    for update in (first, second):
        device.apply(signed_bytes(update, keys.private_path))
    assert device.classes() == ["cat", "dog", "owl", "Bärtierchen 水熊", "okapi", "zebra"]
    device.apply(signed_bytes(third, keys.private_path))
    assert device.classes() == ["cat", "dog", "owl", "gnu"]


def test_replaced_and_removed_classes(device, bundle, keys):
    python = Device.open(bundle)
    for update in (
        make_update("okapi", "zebra", "gnu", version=1),
        make_update("ibex", version=2, replaced=("zebra",), removed=("okapi",)),
    ):
        data = signed_bytes(update, keys.private_path)
        python.apply(data)
        device.apply(data)

    assert device.classes() == list(python.classes())
    np.testing.assert_allclose(device.logits(images()), python.logits(images()).values, rtol=1e-4, atol=1e-5)


def test_unsigned_updates_are_taken_where_an_operator_allows_it(device):
    from icis_deploy.updates.envelope import envelope_of, serialize_envelope

    data = serialize_envelope(envelope_of(make_update("okapi")))

    refused(lambda: device.apply(data), "SignatureError", "is not signed")
    assert device.apply(data, allowUnsigned=True)["entry"]["signed_by"] is None


def test_a_new_set_of_keys_revokes_the_old_one(device, keys, tmp_path):
    new = keygen(tmp_path / "new.key")
    device.apply(signed_bytes(trusted_keys_from_files([new.public_path]), keys.private_path))

    data = signed_bytes(make_update("okapi"), keys.private_path)
    refused(lambda: device.apply(data), "SignatureError", "trusted are")
    device.apply(signed_bytes(make_update("okapi"), new.private_path))
    old = signed_bytes(trusted_keys_from_files([keys.public_path]), new.private_path)
    refused(lambda: device.apply(old), "VersionRollbackError", "set of trusted keys")


def test_root_keys_alone_replace_keys_and_give_versions_back(device, keys, tmp_path):
    roots = [keygen(tmp_path / f"root-{index}.key") for index in range(2)]
    pem = keys.public_path.read_text()
    pems = tuple(root.public_path.read_text() for root in roots)
    with_roots = TrustedKeys(public_keys=(pem,), version=1, root_keys=pems, root_threshold=2)

    def signed_by(content, *pairs):
        from icis_deploy.updates.envelope import envelope_of, serialize_envelope
        from icis_deploy.updates.signing import load_private_key

        envelope = envelope_of(content)
        for pair in pairs:
            envelope.sign(load_private_key(pair.private_path))
        return serialize_envelope(envelope)

    refused(lambda: device.apply(signed_by(with_roots, keys)), "SignatureError", "trusted are|must sign")
    device.apply(signed_by(with_roots, keys, *roots))
    device.apply(signed_by(make_update("thief", version=1 << 62), keys))
    recovery = TrustedKeys(public_keys=(pem,), version=2, highest_version=0)
    refused(lambda: device.apply(signed_by(recovery, keys)), "SignatureError", "trusted are")
    refused(lambda: device.apply(signed_by(recovery, roots[0])), "SignatureError", "by 1 of the trusted keys; 2 must")
    device.apply(signed_by(recovery, *roots))
    assert device.classes() == ["cat", "dog", "owl"]
    device.apply(signed_by(make_update("okapi", version=1), keys))


def test_no_set_gives_a_root_key_that_the_device_keeps_the_role_of_signing_updates(device, keys, tmp_path):
    root = keygen(tmp_path / "root.key")
    pem, root_pem = keys.public_path.read_text(), root.public_path.read_text()
    with_root = envelope_of(TrustedKeys(public_keys=(pem,), version=1, root_keys=(root_pem,)))
    for pair in (keys, root):
        with_root.sign(load_private_key(pair.private_path))
    device.apply(serialize_envelope(with_root))

    both = signed_bytes(TrustedKeys(public_keys=(pem, root_pem), version=2), root.private_path)
    refused(lambda: device.apply(both), "IncompatibleError", "1 keys of the set are root keys of this device")


def test_no_rollback_brings_back_the_classes_of_a_revoked_key(tmp_path, node, keys):
    new = keygen(tmp_path / "new.key")
    folder, state = bundle_of(tmp_path / "bundle", keys, capacity=3), tmp_path / "state"
    python, javascript = Device.open(folder), node.open(folder, state=state)
    by_new = trusted_keys_from_files([new.public_path])
    removal = make_update("gnu", version=2, removed=("okapi", "quagga"))
    for data in (
        signed_bytes(make_update("okapi", "zebra", "quagga"), keys.private_path),
        signed_bytes(by_new, keys.private_path),
        signed_bytes(removal, new.private_path),
    ):
        python.apply(data)
        javascript.apply(data)
    for device in (node.open(folder, state=state), javascript):
        refused(device.rollback, "SignatureError", f"classes signed by .{keys.key_id[:12]}.*does not trust any more")

    python.rollback(allow_revoked=True)
    assert javascript.rollback(allowRevoked=True)["allowed_revoked"]

    assert javascript.classes() == list(python.classes())
    written = [json.loads((each / "journal.json").read_text())["journal"] for each in (state, folder / "state")]
    assert written[0]["states"] == written[1]["states"]
    assert written[0]["states"][-1]["origins"] == [{"signed_by": keys.key_id, "columns": [[3, 6]]}]
    assert node.open(folder, state=folder / "state").history()[-1]["allowed_revoked"]


@pytest.mark.parametrize("is_another_class", [True, False])
def test_a_slot_that_one_key_wrote_twice_does_not_bring_back_what_it_held(is_another_class, device, keys, tmp_path):
    new = keygen(tmp_path / "new.key")
    taken, replaced = make_update("gnu", version=2, removed=("okapi",)), make_update(version=2, replaced=("okapi",))
    device.apply(signed_bytes(make_update("okapi"), keys.private_path))
    device.apply(signed_bytes(taken if is_another_class else replaced, keys.private_path))
    device.apply(signed_bytes(trusted_keys_from_files([new.public_path]), keys.private_path))

    refused(device.rollback, "SignatureError", f"classes signed by .{keys.key_id[:12]}")
    assert device.rollback(allowRevoked=True)["version"] == 1


def test_who_signed_a_class_outlives_the_other_lines_of_the_history(device, keys, tmp_path):
    new = keygen(tmp_path / "new.key")
    device.apply(signed_bytes(make_update("okapi"), keys.private_path))
    device.apply(signed_bytes(trusted_keys_from_files([new.public_path]), keys.private_path))
    for version in range(2, 36):
        update = make_update(version=version, replaced=("gnu",)) if version > 2 else make_update("gnu", version=2)
        device.apply(signed_bytes(update, new.private_path))

    lines = device.history()
    assert [line["version"] for line in lines] == [1, *range(4, 36)]
    assert lines[0]["signed_by"] == keys.key_id


def test_a_clock_that_was_set_back_is_not_believed(tmp_path, node, bundle, keys):
    state, noon = tmp_path / "state", datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
    seconds = noon.timestamp()
    node.open(bundle, state=state, clock=seconds * 1000).apply(signed_bytes(make_update("okapi"), keys.private_path))
    expired = make_update("gnu", version=2, expires=noon)

    device = node.open(bundle, state=state, clock=(seconds - 86400) * 1000)

    data = signed_bytes(expired, keys.private_path)
    refused(lambda: device.apply(data), "ExpiredError", r"clock says 2029-12-31T12:00:00Z, which is before")


def test_two_devices_on_one_state_see_each_others_changes(tmp_path, node, bundle, keys):
    one, other = (node.open(bundle, state=tmp_path / "state") for _ in range(2))
    one.apply(signed_bytes(make_update("okapi", version=1), keys.private_path))

    other.apply(signed_bytes(make_update("gnu", version=2), keys.private_path))

    assert other.classes() == ["cat", "dog", "owl", "okapi", "gnu"]
    assert one.classes() == ["cat", "dog", "owl", "okapi"]
    assert one.refresh()
    assert one.classes() == other.classes()


def test_slots_that_another_page_removed_meanwhile_are_no_damage(node, bundle, keys):
    updates = [signed_bytes(make_update(name, version=n), keys.private_path) for n, name in ((1, "okapi"), (2, "gnu"))]
    data = [base64.b64encode(update).decode() for update in updates]

    assert node.call("overtaken", folder=str(bundle), data=data) == ["cat", "dog", "owl", "okapi"]


def test_a_page_that_another_one_overtakes_while_it_goes_back_goes_back_from_there(node, bundle, keys):
    names = ("okapi", "gnu", "zebra")
    updates = [signed_bytes(make_update(name, version=n), keys.private_path) for n, name in enumerate(names, start=1)]
    data = [base64.b64encode(update).decode() for update in updates]

    found = node.call("overtakenGoingBack", folder=str(bundle), data=data)

    assert (found["version"], found["classes"]) == (0, ["cat", "dog", "owl"])
    assert found["actions"] == ["apply"] * 3 + ["rollback"] * 3


def test_both_devices_refuse_the_same_depth_and_the_same_key_ids(device, bundle, keys):
    good = json.loads(signed_bytes(make_update("okapi"), keys.private_path))
    python = Device.open(bundle)
    signature = good["signatures"][0]
    files = [
        (good | {"signatures": [signature | {"keyid": None}]}, "SignatureError"),
        (good | {"signatures": [signature | {"keyid": 7}]}, "SignatureError"),
        (good | {"signatures": [signature | {"keyid": []}]}, "CorruptFileError"),
        (good | {"note": json.loads("[" * 256 + "]" * 256)}, "CorruptFileError"),
        (good | {"note": json.loads("[" * 255 + "]" * 255)}, None),
    ]
    for document, expected in files:
        data = json.dumps(document).encode()
        if expected is None:
            assert python.apply(data).changed
            assert device.apply(data)["changed"]
            continue
        with pytest.raises(ICISDeployError) as found:
            python.apply(data)
        assert type(found.value).__name__ == expected
        refused(lambda data=data: device.apply(data), expected, "^The file is ")


@pytest.mark.parametrize("clock", [1e15, -1e15])
def test_a_clock_that_no_calendar_has_is_named(node, bundle, keys, clock):
    device = node.open(bundle, clock=clock)
    data = signed_bytes(make_update("okapi"), keys.private_path)

    refused(lambda: device.apply(data), "UsageError", r"The clock says -?1000000000000000; expected milliseconds")
    assert device.classes() == ["cat", "dog", "owl"]


def test_a_bundle_in_the_place_of_another_one_keeps_spent_versions_and_keys(tmp_path, node, bundle, keys):
    state, new = tmp_path / "state", keygen(tmp_path / "new.key")
    device = node.open(bundle, state=state)
    device.apply(signed_bytes(make_update("okapi", version=4), keys.private_path))
    device.apply(signed_bytes(trusted_keys_from_files([new.public_path]), keys.private_path))
    older = bundle_of(tmp_path / "older", keys, head_version=3)
    newer = bundle_of(tmp_path / "newer", keys, head_version=4)

    refused(
        lambda: node.open(older, state=state), "VersionRollbackError", "holds version 3; this device holds version 4"
    )
    device = node.open(newer, state=state)

    assert [line["action"] for line in device.history()] == ["apply", "trust", "replace"]
    stolen = signed_bytes(make_update("gnu", version=9), keys.private_path)
    refused(lambda: device.apply(stolen), "SignatureError", "trusted are")
    replayed = signed_bytes(make_update("gnu", version=4), new.private_path)
    refused(lambda: device.apply(replayed), "VersionRollbackError", "has held version 4")


@pytest.mark.parametrize("name", ["web/model.onnx", "web/keys.json", "slots.safetensors"])
def test_a_file_with_a_wrong_hash_is_named(tmp_path, node, bundle, name):
    path = bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(lambda: node.open(bundle), "CorruptFileError", f"^{name} has {len(data)} bytes and SHA-256")
    path.write_bytes(bytes(data) + b"x")
    refused(lambda: node.open(bundle), "CorruptFileError", f"{name} has {len(data) + 1} bytes")


def test_a_bundle_without_files_for_a_browser_is_refused(tmp_path, node):
    refused(lambda: node.open(write_bundle(tmp_path / "bundle")), "BundleError", "no web/model.onnx.*--target web")


def test_a_signed_bundle_is_opened_by_the_keys_from_outside(tmp_path, node, bundle, keys):
    import icis_deploy

    pem, stranger = keys.public_path.read_text(), keygen(tmp_path / "other.key").public_path.read_text()
    refused(lambda: node.open(bundle, trust=[pem]), "SignatureError", "is not signed")
    icis_deploy.sign_bundle(bundle, key=keys.private_path)

    assert node.open(bundle, trust=[pem]).classes() == ["cat", "dog", "owl"]
    refused(lambda: node.open(bundle, trust=[stranger]), "SignatureError", "trusted are")
    manifest = bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    refused(lambda: node.open(bundle, trust=[pem]), "CorruptFileError", "was changed after the bundle was signed")


def test_a_runtime_without_ed25519_says_so_and_changes_nothing(node, device, keys):
    data = base64.b64encode(signed_bytes(make_update("okapi"), keys.private_path)).decode()

    refused(lambda: device.withoutEd25519(data=data), "MissingDependencyError", "cannot check Ed25519 signatures")
    assert device.classes() == ["cat", "dog", "owl"]


def test_a_server_that_lacks_the_bundle_or_is_not_there(node):
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/nothing/here"
        refused(lambda: node.call("open", url=url), "BundleError", r"here/manifest\.json could not be .* answered 404")
        server.shutdown()
    refused(lambda: node.call("open", url=url), "BundleError", r"could not be fetched: .*Access-Control-Allow-Origin")


def test_damaged_files_are_taken_by_no_device_that_python_would_not_let(tmp_path, node, keys):
    folder = write_bundle(tmp_path / "bundle")
    bundle, trusted = load_manifest(folder), [load_public_key(keys.public_path)]
    random = np.random.default_rng(3)
    contents = (
        make_update("okapi", "zebra"),
        trusted_keys_from_files([keys.public_path]),
        make_update("okapi", "zebra", arbiter=np.ones((2, 5))),
        make_update("okapi", version=5, follows=FollowedState(version=4, digest="0" * 64), removed=("gnu",)),
    )
    good = [signed_bytes(content, keys.private_path) for content in contents]
    files = [*good, *(MUTATIONS[index % len(MUTATIONS)](good[index % 4], random) for index in range(800))]

    found = node.call(
        "verify",
        folder=str(folder),
        keys=[keys.public_path.read_text()],
        files=[base64.b64encode(data).decode() for data in files],
    )

    taken = 0
    for data, answer in zip(files, found, strict=True):
        try:
            expected = verify_bytes(data, bundle=bundle, trusted_keys=trusted, allow_unsigned=False).content
        except ICISDeployError:
            assert answer.get("isOurs"), (answer, data[:200])
            continue
        if "error" in answer:
            assert answer["isOurs"], (answer, data[:200])
            continue
        taken += 1
        content = answer["content"]
        assert content["version"] == expected.version
        if not isinstance(expected, TrustedKeys):
            names = (content["added"], content["replaced"], content["removed"])
            assert names == tuple(map(list, (expected.added, expected.replaced, expected.removed)))
            assert content["rows"] == hashlib.sha256(expected.rows.tobytes()).hexdigest()
    assert taken >= len(good)


def test_signed_payloads_that_break_a_rule_are_refused(tmp_path, node, keys):
    from securesystemslib.dsse import Envelope

    from icis_deploy.updates.envelope import serialize_envelope
    from icis_deploy.updates.payload import PAYLOAD_TYPE, serialize_payload
    from icis_deploy.updates.signing import load_private_key
    from scripts.robustness.two_readers import damaged, updates_of_every_kind

    folder = write_bundle(tmp_path / "bundle")
    bundle, trusted = load_manifest(folder), [load_public_key(keys.public_path)]
    random, signer = np.random.default_rng(4), load_private_key(keys.private_path)
    kinds = updates_of_every_kind(target_digest(bundle), empty_slots(bundle.capacity, bundle.feature_dim).digest())
    payloads = [serialize_payload(update) for update in kinds]
    files = []
    for index in range(800):
        envelope = Envelope(damaged(payloads[index % len(payloads)], random), PAYLOAD_TYPE, {})
        envelope.sign(signer)
        files.append(serialize_envelope(envelope))

    found = node.call(
        "verify",
        folder=str(folder),
        keys=[keys.public_path.read_text()],
        files=[base64.b64encode(data).decode() for data in files],
    )

    both = 0
    for data, answer in zip(files, found, strict=True):
        try:
            expected = verify_bytes(data, bundle=bundle, trusted_keys=trusted, allow_unsigned=False).content
        except ICISDeployError:
            assert answer.get("isOurs"), (answer, base64.b64decode(json.loads(data)["payload"])[:600])
            continue
        if "content" in answer:
            both += 1
            assert answer["content"]["rows"] == hashlib.sha256(expected.rows.tobytes()).hexdigest()
            assert answer["content"]["added"] == list(expected.added)
        else:
            assert answer["isOurs"]
    assert both > 20
