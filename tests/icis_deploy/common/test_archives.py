import io
import struct
import zipfile

import numpy as np
import pytest

from icis_deploy.common import archives
from icis_deploy.common.archives import open_archive, read_npz, unpacked_limit

MAX_BYTES = 1 << 30
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def zipped(members, *, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer


def npy(shape, dtype, data=b"", *, version=1):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    size = struct.pack("<H", len(header)) if version == 1 else struct.pack("<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_arrays_asked_for_are_read_and_all_are_named(save):
    buffer = io.BytesIO()
    save(buffer, values=VALUES, names=np.array(["ant", "bee"]), extra=np.zeros(0), order=np.asfortranarray(VALUES))

    arrays, names = read_npz(buffer, ("names", "values", "order", "missing"), max_bytes=MAX_BYTES)

    assert set(names) == {"values", "names", "extra", "order"}
    assert list(arrays) == ["names", "values", "order"]
    np.testing.assert_array_equal(arrays["values"], VALUES)
    np.testing.assert_array_equal(arrays["order"], VALUES)
    assert arrays["names"].tolist() == ["ant", "bee"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            npy((2, 10**12), "<f8"),
            r"has 0 bytes; its shape \(2, 1000000000000\) and type 'float64' need 16000000000000",
        ),
        (npy((2,), "<U100000000"), r"has 0 bytes; its shape \(2,\) and type '<U100000000' need 800000000"),
        (npy((2,), "<f4", bytes(12)), r"has 12 bytes; .* need 8"),
        (npy((10**12,), "<U0"), r"need 0"),
        (npy((10**12, 0), "<f4"), r"need 0"),
        (npy((2,), "|O", b"\x80\x04N."), r"holds pickled objects"),
        (npy((2,), "<f4", bytes(8), version=3), r"header of version \(3, 0\)"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 60_000) + b"(" * 60_000, r"Header info length \(60000\) is large"),
        (b"\x80\x04N. not numpy's", r"the magic string is not correct"),
    ],
)
def test_an_array_whose_header_states_something_else_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_npz(zipped([("values.npy", array)]), ("values",), max_bytes=MAX_BYTES)


def test_an_array_that_nobody_asked_for_may_be_anything():
    buffer = zipped([("values.npy", npy((1,), "<f4", bytes(4))), ("other.npy", npy((2,), "|O", b"\x80\x04N."))])

    assert list(read_npz(buffer, ("values",), max_bytes=MAX_BYTES)[0]) == ["values"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_do_not_stop_at_a_size_are_refused(method):
    with pytest.raises(ValueError, match=r"its member 'a' is neither stored nor deflated, or is encrypted"):
        open_archive(zipped([("a", b"x")], method=method), max_members=9, max_bytes=MAX_BYTES)


def test_members_are_counted_before_python_lists_them():
    assert len(open_archive(zipped([("a", b""), ("b", b"")]), max_members=2, max_bytes=MAX_BYTES).infolist()) == 2
    with pytest.raises(ValueError, match=r"it has more than 1 members"):
        open_archive(zipped([("a", b""), ("b", b"")]), max_members=1, max_bytes=MAX_BYTES)


@pytest.mark.parametrize("before", [*range(archives._PIECE_BYTES - 40, archives._PIECE_BYTES - 30)])
def test_an_entry_on_the_border_of_two_pieces_is_counted_once(before):
    # With this member stored, the directory begins anywhere around the border.
    buffer = zipped([("a", bytes(before))], method=zipfile.ZIP_STORED)

    assert len(open_archive(buffer, max_members=1, max_bytes=MAX_BYTES).infolist()) == 1
    with pytest.raises(ValueError, match=r"more than 0"):
        open_archive(buffer, max_members=0, max_bytes=MAX_BYTES)


def test_what_members_unpack_to_is_added_up():
    two = zipped([("a", bytes(600)), ("b", bytes(600))])

    with pytest.raises(ValueError, match=r"its \d+ bytes unpack to 1200; at most 1000 are read of such a file"):
        open_archive(two, max_members=2, max_bytes=1000)
    assert open_archive(two, max_members=2, max_bytes=1200)


def test_small_files_may_be_sparse_and_large_ones_hardly():
    assert unpacked_limit(10, 1 << 40) == archives.SMALL_BYTES
    assert unpacked_limit(1 << 30, 1 << 40) == archives.MAX_RATIO << 30
    assert unpacked_limit(1 << 30, 1000) == 1000


def test_a_member_with_more_bytes_than_it_states_is_cut_there():
    data = bytearray(zipped([("values.npy", npy((2, 3), "<f4", bytes(10_000)))]).getvalue())
    stated = len(npy((2, 3), "<f4", VALUES.tobytes()))
    start = data.index(b"PK\x01\x02") + 24  # the size in the directory
    data[start : start + 4] = struct.pack("<I", stated)

    with pytest.raises(ValueError, match=r"Bad CRC-32"):
        read_npz(io.BytesIO(data), ("values",), max_bytes=MAX_BYTES)
