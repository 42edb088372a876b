import json
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.bundle.manifest import (
    INJECTED_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    SLOTS_NAME,
    Bundle,
    FileEntry,
    ModelInput,
    check_file,
    file_entry,
    load_bundle,
    parse_manifest,
    serialize_manifest,
)
from icis_deploy.errors import BundleError, CorruptFileError
from icis_deploy.images.preprocessing import Preprocessing

BASE = "0123456789abcdef" * 4
ENTRY = FileEntry(sha256=BASE, size_bytes=5)


def make_bundle(**changes):
    values = {
        "head_kind": "fused",
        "class_names": ("ant", "Bärin", "okapi"),
        "num_seen": 2,
        "feature_dim": 8,
        "capacity": 0,
        "base_fingerprint": BASE,
        "head_version": 1,
        "model_input": ModelInput(name="input", shape=(3, 8, 8), dtype="float32"),
        "score_kind": "logits",
        "preprocessing": Preprocessing(resize=9, crop=8, mean=(0.5, 0.5, 0.5), std=(1, 1, 1)),
        "files": {MODEL_NAME: ENTRY, INJECTED_NAME: ENTRY},
        "parity": ({"passed": True, "max_scaled_error": 1e-6},),
        "updates": ({"version": 1, "added": ["okapi"]},),
        "created_by": {"icis-deploy": "0.1.0"},
    }
    return Bundle(**(values | changes))


def make_updatable(**changes):
    changes = {"class_names": ("ant", "Bärin"), "files": {MODEL_NAME: ENTRY, SLOTS_NAME: ENTRY}} | changes
    return make_bundle(head_kind="updatable", **({"capacity": 4} | changes))


@pytest.fixture
def folder(tmp_path):
    """A bundle on disk."""
    (tmp_path / MODEL_NAME).write_bytes(b"model")
    (tmp_path / INJECTED_NAME).write_bytes(b"rows")
    bundle = make_bundle(files={path.name: file_entry(path) for path in tmp_path.iterdir()})
    (tmp_path / MANIFEST_NAME).write_bytes(serialize_manifest(bundle))
    return tmp_path


# --- values -------------------------------------------------------------------------------------------------------


def test_the_seen_classes_are_the_first_ones():
    assert make_bundle().seen_names == ("ant", "Bärin")


@pytest.mark.parametrize(
    "bundle",
    [
        make_bundle(),
        make_updatable(),
        make_bundle(preprocessing=None, updates=(), created_by={}, parity=()),
        make_bundle(model_input=ModelInput(name="x", shape=(), dtype="uint8")),
        make_bundle(score_kind="log-probabilities", head_version=0),
    ],
    ids=["fused", "updatable", "sparse", "scalar input", "log-probabilities"],
)
def test_parsing_gives_back_what_was_serialized(bundle):
    data = serialize_manifest(bundle)

    assert parse_manifest(data) == bundle
    assert serialize_manifest(parse_manifest(data)) == data


def test_the_order_in_which_files_were_added_does_not_change_the_bytes():
    files = {INJECTED_NAME: ENTRY, MODEL_NAME: ENTRY}

    assert serialize_manifest(make_bundle(files=files)) == serialize_manifest(make_bundle())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_kind": "open"}, r"The bundle's head kind is 'open'; expected one of \('fused', 'updatable'\)\."),
        ({"score_kind": "scores"}, r"The bundle's score kind is 'scores'; expected one of \('logits',"),
        ({"class_names": ("ant", "ant")}, r"The bundle's classes: Class 'ant' is named twice"),
        ({"class_names": ("ant", "")}, r"The bundle's classes: Class 1 has an empty name"),
        ({"class_names": ("ant", 2)}, r"The bundle's classes: Class 1 is named 2; a name is a text"),
        ({"num_seen": 4}, r"The bundle states 4 seen of 3 classes and 0 slots in a head that is fused; these do"),
        ({"capacity": 4}, r"The bundle states 2 seen of 3 classes and 4 slots in a head that is fused"),
        ({"head_kind": "updatable"}, r"The bundle states 2 seen of 3 classes and 0 slots in a head that is updatable"),
        ({"files": {}}, r"The bundle's manifest does not name \['model\.onnx'\]\."),
        (
            {"head_kind": "updatable", "capacity": 4},
            r"The bundle's manifest does not name \['slots\.safetensors'\]\.",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(BundleError, match=f"^{message}"):
        make_bundle(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_seen", 2.0),
        ("num_seen", 0),
        ("num_seen", "2"),
        ("num_seen", True),
        ("feature_dim", 0),
        ("feature_dim", "8"),
        ("feature_dim", None),
        ("capacity", -1),
        ("capacity", False),
        ("head_version", -1),
        ("head_version", 1.5),
        ("base_fingerprint", None),
        ("parity", (1,)),
        ("updates", ("okapi",)),
        ("created_by", "me"),
    ],
)
def test_a_field_of_the_wrong_type_or_out_of_range_is_named(name, value):
    message = rf"^The bundle states something of the wrong type or out of range in \['{name}'\]\."
    with pytest.raises(BundleError, match=message):
        make_bundle(**{name: value})


# --- the manifest -------------------------------------------------------------------------------------------------


def manifest_with(**changes):
    values = json.loads(serialize_manifest(make_bundle())) | changes
    return json.dumps({key: value for key, value in values.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b'"text"', b"\xff", b"[" * 100_000, b'{"schema_version": 1'], ids=repr
)
def test_what_is_no_json_object_with_a_schema_is_refused(data):
    with pytest.raises(BundleError, match=r"^The manifest is not a JSON object with a `schema_version`\."):
        parse_manifest(data)


@pytest.mark.parametrize("version", [0, 4, "1", None, [1], True, 1.0, 2.0])
def test_another_schema_is_refused_with_what_to_do(version):
    with pytest.raises(
        BundleError, match=r"^The manifest has schema version .*; this release reads \(1, 2, 3\)\. Update"
    ):
        parse_manifest(manifest_with(schema_version=version))


@pytest.mark.parametrize("name", sorted(set(json.loads(serialize_manifest(make_bundle()))) - {"schema_version"}))
def test_a_missing_field_is_refused(name):
    defaults = {"created_by": {}, "reference_source": None}
    if name in defaults:
        assert parse_manifest(manifest_with(**{name: ...})) == make_bundle(**{name: defaults[name]})
        return
    with pytest.raises(BundleError, match=rf"^The manifest lacks a field or has one of the wrong type: .*'{name}'"):
        parse_manifest(manifest_with(**{name: ...}))


def test_a_manifest_of_version_1_is_read_as_what_it_meant():
    written = manifest_with(schema_version=1, precision=..., top=...)
    assert parse_manifest(written) == make_bundle(precision="fp32", top=0)


def test_an_unknown_field_is_refused():
    with pytest.raises(BundleError, match=r"^The manifest lacks a field or has one of the wrong type: .*'more'"):
        parse_manifest(manifest_with(more=1))


def test_a_manifest_in_which_a_key_occurs_twice_is_refused():
    data = manifest_with().replace(b'{"', b'{"capacity": 9, "', 1)

    with pytest.raises(
        BundleError,
        match=r"^The manifest is not a JSON object.* a key occurs twice in an object\. Copy the bundle again",
    ):
        parse_manifest(data)


WRONG_VALUES = st.sampled_from([None, True, -1, 1.5, "text", "", [], [1], [[]], {}, {"a": 1}, float("nan")])


@given(st.sampled_from(sorted(json.loads(serialize_manifest(make_bundle())))), WRONG_VALUES)
def test_any_field_with_any_value_is_refused_or_fits(name, value):
    try:
        bundle = parse_manifest(manifest_with(**{name: value}))
    except BundleError:
        return
    assert parse_manifest(serialize_manifest(bundle)) == bundle


@pytest.mark.parametrize(
    "value",
    [
        {"name": "x", "shape": [3, 8, 0], "dtype": "float32"},
        {"name": "x", "shape": [3, "a"], "dtype": "float32"},
        {"name": "x", "shape": "abc", "dtype": "float32"},
        {"name": "x", "shape": 3, "dtype": "float32"},
        {"name": 1, "shape": [3], "dtype": "float32"},
        {"name": "x", "shape": [3], "dtype": None},
        {"name": "x", "shape": [3]},
        [],
    ],
    ids=str,
)
def test_an_input_that_is_none_is_refused(value):
    with pytest.raises(BundleError, match=r"^The manifest (?:contradicts itself|lacks a field)"):
        parse_manifest(manifest_with(model_input=value))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../model.onnx", "deep/../../x", "a\\b", "./model.onnx", "a//b", "", "a/", "null\0byte"]
)
def test_a_file_outside_the_bundle_is_refused(name):
    files = {MODEL_NAME: vars_of(ENTRY), name: vars_of(ENTRY)}

    with pytest.raises(BundleError, match=r"^The manifest contradicts itself: The manifest names the file .*, which"):
        parse_manifest(manifest_with(files=files))


def vars_of(entry):
    return {"sha256": entry.sha256, "size_bytes": entry.size_bytes}


@pytest.mark.parametrize(
    "entry", [None, {}, {"sha256": BASE}, {"sha256": BASE, "size_bytes": 1, "more": 1}, [BASE, 1]], ids=str
)
def test_a_file_entry_that_is_none_is_refused(entry):
    with pytest.raises(BundleError, match=r"^The manifest lacks a field or has one of the wrong type: "):
        parse_manifest(manifest_with(files={MODEL_NAME: entry}))


def test_preprocessing_that_is_wrong_is_refused_with_the_key():
    with pytest.raises(BundleError, match=r"^The manifest contradicts itself: the manifest's preprocessing: unknown"):
        parse_manifest(manifest_with(preprocessing={"scale": 1}))


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_bundle_is_loaded_when_every_file_is_as_stated(folder):
    assert load_bundle(folder).class_names == ("ant", "Bärin", "okapi")


def test_files_that_the_manifest_does_not_name_do_not_matter(folder):
    (folder / "trust").mkdir()
    (folder / "notes.txt").write_text("mine")

    assert load_bundle(folder).num_seen == 2


@pytest.mark.parametrize("name", [MODEL_NAME, INJECTED_NAME])
def test_one_other_bit_in_any_file_is_refused(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[1] ^= 1
    (folder / name).write_bytes(data)

    found = rf"{len(data)} bytes and SHA-256 \w{{16}}…"
    message = rf"^\S+{name} has {found}; the manifest states {found.replace('SHA-256 ', '')}"
    with pytest.raises(CorruptFileError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda _: b""])
def test_a_file_of_another_length_is_refused(folder, change):
    (folder / MODEL_NAME).write_bytes(change((folder / MODEL_NAME).read_bytes()))

    with pytest.raises(CorruptFileError, match=r"^\S+model\.onnx has \d bytes .*The file was changed or damaged"):
        load_bundle(folder)


def test_a_missing_file_is_named(folder):
    (folder / MODEL_NAME).unlink()

    with pytest.raises(BundleError, match=r"^The manifest names \S+model\.onnx, which cannot be read: No such file"):
        load_bundle(folder)


def test_a_folder_in_place_of_a_file_is_refused(folder):
    (folder / MODEL_NAME).unlink()
    (folder / MODEL_NAME).mkdir()

    with pytest.raises(BundleError, match=r"^The manifest names \S+model\.onnx, which cannot be read: it is a folder"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["missing", "model.onnx", "x" * 300])
def test_what_is_no_folder_is_no_bundle(folder, name):
    with pytest.raises(BundleError, match=r"^There is no bundle at \S+\. `export\(\)` makes one\."):
        load_bundle(folder / name)


def test_a_folder_without_a_manifest_is_no_bundle(folder):
    (folder / MANIFEST_NAME).unlink()

    message = r"^Cannot read the manifest \S+manifest\.json: No such file or directory\. Name a folder that `export"
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_a_damaged_manifest_is_named(folder):
    (folder / MANIFEST_NAME).write_bytes((folder / MANIFEST_NAME).read_bytes()[:-3])

    with pytest.raises(BundleError, match=r"^\S+manifest\.json: The manifest is not a JSON object"):
        load_bundle(folder)


def test_checking_a_single_file(folder):
    path = folder / MODEL_NAME
    check_file(path, file_entry(path))

    with pytest.raises(CorruptFileError, match=r"^\S+model\.onnx has 5 bytes"):
        check_file(path, replace(file_entry(path), size_bytes=6))
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        check_file(folder / "missing", ENTRY)
    with pytest.raises(FileNotFoundError):
        file_entry(folder / "missing")


def test_the_time_of_writing_is_kept_to_the_second():
    bundle = make_bundle(written_at=datetime(2027, 1, 2, 3, 4, 5, tzinfo=timezone.utc))

    assert json.loads(serialize_manifest(bundle))["written_at"] == "2027-01-02T03:04:05Z"
    assert parse_manifest(serialize_manifest(bundle)).written_at == bundle.written_at
    assert "written_at" not in json.loads(serialize_manifest(make_bundle()))
    with pytest.raises(BundleError, match="has not the form"):
        parse_manifest(manifest_with(written_at="yesterday"))
