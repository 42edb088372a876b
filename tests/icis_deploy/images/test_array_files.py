"""Files of arrays: every format gives the same inputs, and what a file claims is compared with its size first."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.errors import ImageError, MissingDependencyError
from icis_deploy.images import array_files, parquet_files
from icis_deploy.images.inputs import InputForm, prepared_batches
from icis_deploy.images.loading import open_inputs

INPUTS = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
LABELS = ("ant", "bee", "ant", "cat", "bee")
FORM = InputForm(shape=(2, 3))


def prepared(path: Path) -> np.ndarray:
    return np.concatenate([batch.inputs for batch in prepared_batches(open_inputs(path), FORM, batch_size=2)])


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], labels: object = None) -> Path:
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata=None if labels is None else {"labels": json.dumps(labels)})
    return path


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def write_npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("name", ["inputs", "images", "X"])
def test_every_format_gives_the_same_inputs_and_labels(tmp_path, name):
    paths = [
        write_npz(tmp_path / "a.npz", **{name: INPUTS}, labels=np.array(LABELS)),
        write_safetensors(tmp_path / "a.safetensors", {name: INPUTS}, LABELS),
    ]
    for path in paths:
        np.testing.assert_array_equal(prepared(path), INPUTS)
        assert open_inputs(path).labels == LABELS


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8", "bool", ">f4"])
def test_numbers_of_any_type_become_float32(tmp_path, dtype):
    array = np.round(INPUTS).astype(np.int8).astype(dtype)
    np.testing.assert_array_equal(prepared(write_npy(tmp_path / "a.npy", array)), array.astype(np.float32))


def test_an_npy_file_has_no_labels_and_may_be_in_fortran_order(tmp_path):
    path = write_npy(tmp_path / "a.npy", np.asfortranarray(INPUTS))

    np.testing.assert_array_equal(prepared(path), INPUTS)
    assert open_inputs(path).labels is None


def test_flat_numbers_are_laid_out_as_the_model_takes_them(tmp_path):
    np.testing.assert_array_equal(prepared(write_npy(tmp_path / "a.npy", INPUTS.reshape(5, 6))), INPUTS)


def test_a_selection_is_in_the_order_of_its_indices(tmp_path):
    source = open_inputs(write_npz(tmp_path / "a.npz", inputs=INPUTS, labels=np.array(LABELS)))
    chosen = source.select([3, 0])

    assert [item.label for item in chosen] == ["cat", "ant"]
    assert [item.key for item in chosen] == [f"{tmp_path / 'a.npz'}[3]", f"{tmp_path / 'a.npz'}[0]"]
    np.testing.assert_array_equal(np.stack([item.value for item in chosen]), INPUTS[[3, 0]])


def test_lists_and_class_folders_may_hold_an_array_for_each_input(tmp_path):
    for index, label in enumerate(LABELS):
        (tmp_path / "folders" / label).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "folders" / label / f"{index}.npy", INPUTS[index])
    lines = [f"folders/{label}/{index}.npy,{label}" for index, label in enumerate(LABELS)]
    (tmp_path / "list.csv").write_text("\n".join(["file,class", *lines]) + "\n")

    np.testing.assert_array_equal(prepared(tmp_path / "list.csv"), INPUTS)
    assert sorted(open_inputs(tmp_path / "folders").labels) == sorted(LABELS)
    assert len(prepared(tmp_path / "folders")) == 5


def npy_claiming(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = b"") -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy_claiming((1 << 40, 6)), r"it has 0 bytes; its shape .* need 26388279066624"),
        (npy_claiming((5, 6), data=bytes(119)), r"it has 119 bytes; its shape \(5, 6\)"),
        (npy_claiming((5, 6), data=bytes(121)), r"it has 121 bytes"),
        (npy_claiming((1 << 40,), dtype="|V0"), "expected numbers"),
        (npy_claiming((5,), dtype="|O"), "expected numbers"),
        (npy_claiming((-1, -6), data=bytes(24)), "Cannot read the array"),
        (b"\x93NUMPY\x09\x00", "header of version"),
        (b"no array", "Cannot read the array"),
        (b"", "Cannot read the array"),
    ],
)
def test_a_header_is_compared_with_the_size_of_its_file(tmp_path, data, message):
    (tmp_path / "a.npy").write_bytes(data)

    with pytest.raises(ImageError, match=message):
        prepared(tmp_path / "a.npy")


def test_a_file_of_inputs_over_the_cap_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "MAX_ARRAY_BYTES", 100)

    with pytest.raises(ImageError, match="larger than 100 bytes"):
        open_inputs(write_safetensors(tmp_path / "a.safetensors", {"inputs": INPUTS}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": INPUTS, "b": INPUTS}, r"holds \['a', 'b'\]; expected `inputs`"),
        ({"features": INPUTS}, r"`bench\(\)` measures the accuracy of features"),
        ({"inputs": INPUTS[:, 0, 0]}, r"the array has shape \(5,\)"),
    ],
)
def test_what_holds_no_inputs_says_what_it_holds(tmp_path, arrays, message):
    for path in (
        write_npz(tmp_path / "a.npz", **arrays),
        write_safetensors(
            tmp_path / "a.safetensors", {name: np.ascontiguousarray(one) for name, one in arrays.items()}
        ),
    ):
        with pytest.raises(ImageError, match=message):
            open_inputs(path)


@pytest.mark.parametrize(
    ("labels", "message"), [(["ant"], "5 inputs and 1 labels"), ([0, 1, 0, 2, 1], "the label 0 is no name of a class")]
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
    for path in (
        write_npz(tmp_path / "a.npz", inputs=INPUTS, labels=np.array(labels)),
        write_safetensors(tmp_path / "a.safetensors", {"inputs": INPUTS}, labels),
    ):
        with pytest.raises(ImageError, match=message):
            open_inputs(path)


def test_a_missing_value_is_named_with_its_place(tmp_path):
    holes = INPUTS.copy()
    holes[3, 1, 2] = np.nan

    with pytest.raises(ImageError, match=r"a\.npy\[3\] holds nan at \(1, 2\); expected finite numbers"):
        prepared(write_npy(tmp_path / "a.npy", holes))


# --- Parquet -------------------------------------------------------------------------------------------------------


def test_without_pyarrow_a_parquet_file_names_the_command_that_installs_it(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"] + ["pyarrow", "pyarrow.parquet"]:
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")

    with pytest.raises(MissingDependencyError, match=r"pip install 'icis-deploy\[data\]'") as raised:
        open_inputs(tmp_path / "a.parquet")
    assert raised.value.exit_code == 5


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    metadata = options.pop("metadata", None)
    parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
    return path


def test_columns_of_numbers_are_the_input_in_their_order(tmp_path):
    flat = INPUTS.reshape(5, 6).astype(np.float64)
    columns = {f"x{index}": flat[:, index] for index in range(5)} | {"flag": [True, False, True, True, False]}
    path = write_parquet(tmp_path / "a.parquet", {"class": list(LABELS), **columns})
    (batch,) = prepared_batches(open_inputs(path), InputForm(shape=(6,)), batch_size=8)

    np.testing.assert_array_equal(batch.inputs[:, :5], flat[:, :5].astype(np.float32))
    np.testing.assert_array_equal(batch.inputs[:, 5], [1, 0, 1, 1, 0])
    assert batch.labels == LABELS


@pytest.mark.parametrize("nested", [False, True])
def test_a_column_of_lists_is_laid_out_as_the_model_takes_it(tmp_path, nested):
    values = (INPUTS if nested else INPUTS.reshape(5, 6)).tolist()
    path = write_parquet(tmp_path / "a.parquet", {"inputs": values, "label": list(LABELS)}, row_group_size=2)

    np.testing.assert_allclose(prepared(path), INPUTS)
    np.testing.assert_allclose(
        np.stack([np.ravel(item.value) for item in open_inputs(path).select([4, 1])]), INPUTS[[4, 1]].reshape(2, 6)
    )


def test_numbered_labels_have_the_names_that_hugging_face_writes(tmp_path):
    stated = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}
    columns = {"inputs": INPUTS.reshape(5, 6).tolist(), "label": [0, 1, 0, 2, 1]}
    path = write_parquet(tmp_path / "a.parquet", columns, metadata={"huggingface": json.dumps(stated)})

    assert open_inputs(path).labels == LABELS
    with pytest.raises(ImageError, match="the label of row 0 is 0, which is no name of a class"):
        open_inputs(write_parquet(tmp_path / "b.parquet", columns))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": ["x"], "b": [1.0]}, r"has the columns \['a', 'b'\]; expected"),
        ({"class": ["x"]}, "expected `image`, `file`, `inputs`, or numbers"),
        ({"inputs": [["x"]]}, "that are no arrays of numbers"),
        ({"inputs": [[1.0, 2.0], None]}, "1 empty cells"),
        ({"image": ["text"]}, "expected the bytes of an image file"),
    ],
)
def test_columns_that_are_no_inputs_are_refused(tmp_path, columns, message):
    path = write_parquet(tmp_path / "a.parquet", columns)

    with pytest.raises(ImageError, match=message):
        list(open_inputs(path))


def test_a_parquet_file_that_repeats_a_value_for_ever_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_files, "MAX_BYTES", 1 << 16)
    path = write_parquet(tmp_path / "a.parquet", {"x": np.zeros(100_000)})

    assert path.stat().st_size < 1 << 16
    with pytest.raises(ImageError, match=r"states 100000 values; at most 8192 are read of such a file"):
        open_inputs(path)


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"x": [1.0, 2.0]})
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(ImageError, match=r"Cannot read the inputs in .*a\.parquet"):
        open_inputs(path)
