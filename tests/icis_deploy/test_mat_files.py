import io

import numpy as np
import pytest
from scipy.io import savemat

from icis_deploy.errors import LoadError
from icis_deploy.mat_files import CHUNK_BYTES, read_mat

VALUES = np.random.default_rng(0).normal(size=(4, CHUNK_BYTES // 8))
"""Packed, it is longer than several chunks."""


def mat_bytes(*, is_packed: bool) -> bytearray:
    buffer = io.BytesIO()
    savemat(buffer, {"first": np.ones((2, 3)), "values": VALUES}, do_compression=is_packed)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize("is_packed", [True, False])
def test_the_arrays_asked_for_are_read(is_packed):
    content = read_mat(io.BytesIO(mat_bytes(is_packed=is_packed)), ["values"])

    np.testing.assert_array_equal(content["values"], VALUES)
    assert "first" not in content


def test_a_packed_array_with_another_checksum_is_refused_though_nobody_asked_for_it():
    data = mat_bytes(is_packed=True)
    data[136 + int.from_bytes(data[132:136], "little") - 1] ^= 1  # the last byte of the first array's Adler-32

    with pytest.raises(LoadError, match="incorrect data check"):
        read_mat(io.BytesIO(data), ["values"])


def test_a_packed_array_that_ends_too_early_is_refused():
    with pytest.raises(LoadError, match=r"^it ends too early$"):
        read_mat(io.BytesIO(mat_bytes(is_packed=True)[:-CHUNK_BYTES]), ["values"])
