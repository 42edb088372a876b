"""Archives of WebDataset: what belongs together, what is damaged, and what a header claims."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from icis_deploy.errors import ImageError
from icis_deploy.images import tar_files
from icis_deploy.images.inputs import InputForm, prepared_batches
from icis_deploy.images.loading import open_inputs


def png(shade: int) -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (shade, shade, shade)).save(data, "png")
    return data.getvalue()


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


SAMPLES = {
    "a/1.png": png(1),
    "a/1.cls": b"ant\n",
    "a/2.PNG": png(2),
    "a/2.cls": b"bee",
    "a/3.png": png(3),
    "a/3.cls": b"ant",
}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_and_classes_are_read_from_their_places(tmp_path, format):
    long = "b/" + "x" * 300
    members = SAMPLES if format == tarfile.USTAR_FORMAT else {**SAMPLES, f"{long}.png": png(4), f"{long}.cls": b"bee"}
    path = write_tar(tmp_path / "a.tar", members, format)

    source = open_inputs(path)

    images = {name: data for name, data in members.items() if name.lower().endswith(".png")}
    assert [(item.key, item.value) for item in source] == [(f"{path}/{name}", data) for name, data in images.items()]
    assert source.labels == ("ant", "bee", "ant", "bee")[: len(images)]
    assert [(item.label, item.value) for item in source.select([2, 1])] == [("ant", png(3)), ("bee", png(2))]


@pytest.mark.parametrize(
    ("member", "data", "label"),
    [
        ("1.cls", b"okapi", "okapi"),
        ("1.txt", "\ufeffÖkapi\n".encode(), "Ökapi"),
        ("1.json", b'{"class": "okapi", "width": 3}', "okapi"),
        ("1.json", b'{"label": 1}', "bee"),
        ("1.cls", b"1", "bee"),
        ("1.json", b'{"width": 3}', None),
        ("1.txt.gz", b"", None),
    ],
)
def test_a_class_is_a_name_or_the_number_of_one(tmp_path, member, data, label):
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    source = open_inputs(write_tar(tmp_path / "a.tar", {"1.png": png(1), member: data}))

    assert source.labels == (None if label is None else (label,))


@pytest.mark.parametrize("names", [None, "ant\nbee\n"])
def test_a_number_without_a_name_is_refused(tmp_path, names):
    if names is not None:
        (tmp_path / "classes.txt").write_text(names)
    path = write_tar(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"2"})

    with pytest.raises(ImageError, match="as the number 2, and") as caught:
        open_inputs(path)
    assert "classes.txt" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "There is no image in"),
        ({"1.cls": b"ant"}, "has 0 images under '1'"),
        ({"1.png": b"", "1.jpg": b""}, "has 2 images under '1'"),
        ({"1.png": b"", "1.cls": b"ant", "2.png": b""}, "which class '2' shows"),
        ({"1.png": b"", "2.png": b"", "2.cls": b"ant"}, r"which class '1\.png' shows"),
        ({"1.png": b"", "1.cls": b"ant\nbee"}, "expected one name or number"),
        ({"1.png": b"", "1.json": b"[1]"}, "it is no JSON object"),
        ({"1.png": b"", "1.json": b'{"class": true}'}, "its class is True"),
        ({"1.png": b"", "1.cls": b"\xff"}, "does not say a class"),
    ],
)
def test_what_belongs_to_nothing_is_refused_by_name(tmp_path, members, message):
    with pytest.raises(ImageError, match=message) as caught:
        open_inputs(write_tar(tmp_path / "a.tar", members))
    assert "a.tar" in str(caught.value.where)


def test_half_an_archive_is_refused_wherever_it_ends(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", SAMPLES).read_bytes()
    content = sum(512 + -(-len(data) // 512) * 512 for data in SAMPLES.values())
    path = tmp_path / "half.tar"
    for length in range(0, content + 1, 128):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"Cannot read the archive .*half\.tar"):
            open_inputs(path)
    path.write_bytes(whole[: content + 512])
    assert len(open_inputs(path)) == 3


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    data = bytearray(path.read_bytes())
    data[1024:1064] = b"x" * 40  # the header that follows the first image
    path.write_bytes(data)

    with pytest.raises(ImageError, match="damaged or cut short"):
        open_inputs(path)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_memory_is_not_taken_for_what_a_header_claims(tmp_path, kind):
    info = tarfile.TarInfo("1.png")
    info.type, info.size = kind, 1 << 32
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with path.open("r+b") as file:
        file.truncate(1 << 33)  # as many bytes are there, though none takes space

    with pytest.raises(ImageError, match="a header claims"):
        open_inputs(path)


def test_a_large_image_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_files, "MAX_IMAGE_BYTES", 10)

    with pytest.raises(ImageError, match=r"a/1\.png has \d+ bytes; at most 10 are read of an image"):
        open_inputs(write_tar(tmp_path / "a.tar", SAMPLES))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)

    with pytest.raises(ImageError, match="no plain file"):
        open_inputs(path)


def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass

    with pytest.raises(ImageError, match="compressed") as caught:
        open_inputs(path)
    assert "gzip -d" in (caught.value.hint or "")


def test_arrays_in_an_archive_are_inputs(tmp_path):
    array, data = np.arange(6, dtype=np.float32).reshape(2, 3), io.BytesIO()
    np.save(data, np.asfortranarray(array))
    source = open_inputs(write_tar(tmp_path / "a.tar", {"1.npy": data.getvalue(), "2.npy": data.getvalue()}))

    (batch,) = prepared_batches(source, InputForm(shape=(2, 3)), batch_size=2)

    np.testing.assert_array_equal(batch.inputs, np.stack([array, array]))
    broken = open_inputs(write_tar(tmp_path / "b.tar", {"1.npy": data.getvalue()[:-1]}))
    with pytest.raises(ImageError, match=r"Cannot read the array .*b\.tar/1\.npy: it has 23 bytes"):
        list(broken)


def test_an_archive_that_changes_while_it_is_read_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    for change in (lambda: write_tar(path, {**SAMPLES, "4.png": png(4), "4.cls": b"ant"}), path.unlink):
        source = open_inputs(path)
        items = iter(source)
        next(items)
        change()
        with pytest.raises(ImageError, match=r"a\.tar was changed while it was read"):
            list(items)


def test_an_archive_replaced_by_one_of_its_size_is_noticed(tmp_path):
    path = write_tar(tmp_path / "a.tar", SAMPLES)
    source = open_inputs(path)
    other = write_tar(tmp_path / "other.tar", {name.replace("a/", "b/"): data for name, data in SAMPLES.items()})
    assert other.stat().st_size == path.stat().st_size
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)

    with pytest.raises(ImageError, match="was changed while it was read"):
        list(source)


@pytest.mark.parametrize("as_pattern", [True, False])
def test_shards_are_one_data_set(tmp_path, as_pattern):
    for number in range(12):
        write_tar(
            tmp_path / f"s-{number:03}.tar",
            {"1.png": png(number), "1.json": json.dumps({"class": f"c{number}"}).encode()},
        )
    source = open_inputs(tmp_path / "s-{000..011}.tar" if as_pattern else tmp_path)

    assert [item.value for item in source] == [png(number) for number in range(12)]
    assert source.labels == tuple(f"c{number}" for number in range(12))
    assert len({item.key for item in source}) == 12
    chosen = source.select([11, 0, 11, 5])
    assert [(item.label, item.value) for item in chosen] == [(f"c{n}", png(n)) for n in (11, 0, 11, 5)]
    assert chosen.labels == ("c11", "c0", "c11", "c5")


def test_a_shard_that_is_damaged_or_not_there_is_named(tmp_path):
    write_tar(tmp_path / "s-0.tar", {"1.png": png(1)})
    with pytest.raises(ImageError, match=r"s-1\.tar"):
        open_inputs(tmp_path / "s-{0..1}.tar")
    (tmp_path / "s-1.tar").write_bytes((tmp_path / "s-0.tar").read_bytes()[:600])
    with pytest.raises(ImageError, match=r"s-1\.tar"):
        open_inputs(tmp_path)
    write_tar(tmp_path / "s-1.tar", {"1.png": png(1), "1.cls": b"ant"})
    with pytest.raises(ImageError, match=r"s-0\.tar does not say which classes"):
        open_inputs(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002.tar", "train-00001-of-00002.tar", "test-00000-of-00001.tar"], "several splits"),
        (["train-00000-of-00003.tar", "train-00002-of-00003.tar"], "2 of the 3 files .* number 1 is not there"),
        (["a.tar", "b.parquet"], "files of two kinds"),
    ],
)
def test_a_folder_holds_one_whole_data_set(tmp_path, names, message):
    for name in names:
        write_tar(tmp_path / name, {"1.png": png(1)})

    with pytest.raises(ImageError, match=message):
        open_inputs(tmp_path)


def test_an_archive_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"^There is no archive .*shard-000\.tar\.") as raised:
        open_inputs(str(tmp_path / "shard-{000..003}.tar"))
    assert raised.value.hint == "Check the path; of several archives, the first and the last number."
