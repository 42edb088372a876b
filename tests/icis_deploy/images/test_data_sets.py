"""Data sets in folders and at URIs: the same inputs, wherever they are, and one line for what is not there."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from icis_deploy.errors import ImageError, MissingDependencyError
from icis_deploy.images import input_files
from icis_deploy.images.inputs import InputForm, prepared_batches
from icis_deploy.images.loading import open_inputs
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.python_values import single_values, source_from

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")


def png(shade: int) -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (shade, shade, shade)).save(data, "png")
    return data.getvalue()


IMAGES = [png(shade) for shade in range(5)]
NAMES = ["ant", "bee"]


def rows(first: int, last: int, *, numbered: bool) -> pa.Table:
    labels = [number % 2 if numbered else NAMES[number % 2] for number in range(first, last)]
    return pa.table({"image": [{"bytes": data, "path": None} for data in IMAGES[first:last]], "label": labels})


def save_dataset(folder: Path) -> Path:
    """Write what `datasets` writes."""
    folder.mkdir(parents=True)
    files = []
    for number, (first, last) in enumerate([(0, 3), (3, 5)]):
        files.append({"filename": f"data-{number:05}-of-00002.arrow"})
        table = rows(first, last, numbered=True)
        with pa.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://bucket"
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def put(uri: str, data: bytes) -> str:
    with fsspec.open(uri, "wb") as file:
        file.write(data)
    return uri


def parquet_bytes(table: pa.Table) -> bytes:
    data = io.BytesIO()
    pq.write_table(table, data)
    return data.getvalue()


def check(source) -> None:
    assert [item.value for item in source] == IMAGES
    assert source.labels == tuple(NAMES[number % 2] for number in range(5))
    assert [item.value for item in source.select([4, 0, 3])] == [IMAGES[4], IMAGES[0], IMAGES[3]]
    assert len({item.key for item in source}) == len(source) == 5


def test_a_folder_of_parquet_files_is_one_data_set(tmp_path):
    for number, (first, last) in enumerate([(0, 2), (2, 5)]):
        pq.write_table(rows(first, last, numbered=False), tmp_path / f"test-{number:05}-of-00002.parquet")

    check(open_inputs(tmp_path))


def test_a_saved_data_set_is_read_with_the_names_of_its_classes(tmp_path):
    check(open_inputs(save_dataset(tmp_path / "data")))


def test_a_saved_data_set_that_is_not_whole_is_refused(tmp_path):
    folder = save_dataset(tmp_path / "data")
    path = folder / "data-00001-of-00002.arrow"
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"data-00001-of-00002\.arrow"):
            list(open_inputs(folder))
    path.unlink()
    with pytest.raises(ImageError, match=r"data-00001-of-00002\.arrow"):
        open_inputs(folder)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("[]", "no JSON object"),
        ("{}", "names no files"),
        ('{"_data_files": [{"filename": "../other.arrow"}]}', r"names '\.\./other\.arrow'"),
    ],
)
def test_a_state_that_names_no_files_of_the_folder_is_refused(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state)

    with pytest.raises(ImageError, match=message):
        open_inputs(tmp_path)


def test_a_data_set_of_several_splits_says_which_there_are(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')

    with pytest.raises(ImageError, match=r"several splits: \['train', 'test'\]") as caught:
        open_inputs(tmp_path)
    assert str(tmp_path / "train") in (caught.value.hint or "")


def test_a_parquet_file_that_changes_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(rows(0, 5, numbered=False), path)
    items = iter(open_inputs(path))
    next(items)
    path.write_bytes(parquet_bytes(rows(0, 4, numbered=False)))

    with pytest.raises(ImageError, match=r"a\.parquet was changed while it was read"):
        list(items)


@pytest.mark.parametrize("is_local", [True, False])
def test_a_parquet_file_at_a_uri_is_the_same(tmp_path, memory, is_local):
    place = tmp_path.as_uri() if is_local else memory
    check(open_inputs(put(f"{place}/a.parquet", parquet_bytes(rows(0, 5, numbered=False)))))


@pytest.mark.parametrize("is_local", [True, False])
def test_a_list_at_a_uri_or_of_uris_is_the_same(tmp_path, memory, is_local):
    place = tmp_path.as_uri() if is_local else memory
    lines = []
    for number, data in enumerate(IMAGES):
        uri = put(f"{place}/images/{number}.png", data)
        lines.append(f"{uri if number % 2 else f'images/{number}.png'},{NAMES[number % 2]}\n")
    source = open_inputs(put(f"{place}/list.csv", ("file,class\n" + "".join(lines)).encode()))
    preprocessing = Preprocessing(resize=4, crop=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    form = InputForm(shape=(3, 4, 4), preprocessing=preprocessing)

    (batch,) = prepared_batches(source, form, batch_size=5)
    (plain,) = prepared_batches(source_from(IMAGES), form, batch_size=5)

    np.testing.assert_array_equal(batch.inputs, plain.inputs)
    assert batch.labels == tuple(NAMES[number % 2] for number in range(5))
    (tmp_path / "local.csv").write_text(f"file,class\n{place}/images/1.png,bee\n")
    (of_local,) = prepared_batches(open_inputs(tmp_path / "local.csv"), form, batch_size=5)
    np.testing.assert_array_equal(of_local.inputs[0], plain.inputs[1])


def test_archives_at_uris_are_the_same(tmp_path, memory):
    import tarfile

    for shard, numbers in enumerate([range(2), range(2, 5)]):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            for number in numbers:
                for name, content in ((f"{number}.png", IMAGES[number]), (f"{number}.cls", str(number % 2).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        put(f"{memory}/s-{shard}.tar", data.getvalue())
    with pytest.raises(ImageError, match=r"there is no classes\.txt next to it"):
        open_inputs(f"{memory}/s-{{0..1}}.tar")
    put(f"{memory}/classes.txt", b"ant\nbee\n")

    check(open_inputs(f"{memory}/s-{{0..1}}.tar"))
    assert len(list(single_values(f"{memory}/s-1.tar", InputForm(shape=(3, 4, 4))))) == 3


@pytest.mark.parametrize("name", ["list.csv", "a.parquet", "a.tar", "s-{0..3}.tar"])
def test_a_bucket_that_is_not_there_is_one_line_with_the_uri(name):
    with pytest.raises(
        ImageError, match=r"^Cannot read memory://nowhere/.*: there is no such file\. Check the URI[^\n]*$"
    ):
        open_inputs(f"memory://nowhere/{name}")


def test_an_image_that_is_not_at_its_uri_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("file\nmemory://nowhere/a.png\n")
    form = InputForm(shape=(3, 4, 4), preprocessing=Preprocessing(resize=4, crop=4, mean=(0.0,) * 3, std=(1.0,) * 3))

    with pytest.raises(ImageError, match=r"Cannot read memory://nowhere/a\.png: there is no such file"):
        list(prepared_batches(open_inputs(tmp_path / "a.csv"), form, batch_size=1))


def test_an_object_that_is_replaced_while_it_is_read_is_named(memory):
    uri = put(f"{memory}/a.parquet", parquet_bytes(rows(0, 5, numbered=False)))
    source = open_inputs(uri)
    put(uri, parquet_bytes(rows(0, 4, numbered=False)))

    with pytest.raises(ImageError, match=r"a\.parquet was changed while it was read"):
        list(source)


def test_a_large_object_is_refused_before_it_is_read(memory):
    uri = put(f"{memory}/list.csv", b"file\n" + b"x" * 100)

    with pytest.raises(ImageError, match="has 105 bytes; at most 10 are read"):
        input_files.read_input(input_files.input_file(uri), max_bytes=10)


def test_a_protocol_that_nobody_knows_or_has_is_named(monkeypatch):
    with pytest.raises(ImageError, match=r"Cannot read nosuch://a/b\.csv: Protocol not known"):
        open_inputs("nosuch://a/b.csv")
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(MissingDependencyError, match=r"Reading memory://a/b\.csv needs fsspec"):
        open_inputs("memory://a/b.csv")


@pytest.mark.parametrize(("protocol", "extra"), [("https", "http"), ("s3", "s3")])
def test_what_a_protocol_lacks_is_installed_by_fsspecs_name_for_it(protocol, extra, monkeypatch):
    def lacking(uri):
        raise ImportError(f"Install something to read {uri}.")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    with pytest.raises(MissingDependencyError, match="Install something to read") as caught:
        open_inputs(f"{protocol}://a/b.csv")
    assert caught.value.what.endswith("://a/b.csv.")
    assert caught.value.hint == f"Install it: pip install 'fsspec[{extra}]'."


def test_half_a_parquet_file_is_one_sentence_and_what_to_do(tmp_path):
    (tmp_path / "half.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ImageError, match=r"^Cannot read the inputs in .*half\.parquet: ") as caught:
        open_inputs(str(tmp_path / "half.parquet"))
    assert not caught.value.what.endswith("..")
    assert caught.value.hint == "Copy or write it again."


def test_arrays_at_a_uri_are_refused_with_what_to_do():
    with pytest.raises(ImageError, match="cannot be read where it is") as caught:
        open_inputs("memory://a/b.npz")
    assert "Copy it" in (caught.value.hint or "")
