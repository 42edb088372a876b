"""Files that are small, or state little, and would take gigabytes: each is refused in one line, with little memory."""

import gzip
import io
import json
import struct
import zipfile
import zlib

import PIL.Image
import pytest

from testing.bundles import write_bundle
from testing.peak_memory import peak_memory

MAX_BYTES = 400 << 20
"""What reading a bomb may take: an image of as many pixels as are taken, and what it is resized to, need as much."""


@pytest.fixture(scope="module")
def peak():
    with peak_memory() as measured:
        yield measured.of


IMAGES = """
from icis_deploy.images.loading import load_images
from icis_deploy.images.preprocessing import Preprocessing
import PIL.Image, PIL.PngImagePlugin
PIL.Image.init()
"""
READ_IMAGE = "load_images([Path(sys.argv[1])], Preprocessing(resize=256, crop=224, mean=(0,) * 3, std=(1,) * 3))"


def png(width, height):
    buffer = io.BytesIO()
    PIL.Image.new("1", (width, height)).save(buffer, "png")
    return buffer.getvalue()


def png_of(width, height):
    """A file that states a size, without the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


IMAGE_BOMBS = {
    "narrow": (lambda: png(1, 20_000), r"resized for the model it would have 256 x 5120000 pixels; at most 67108864"),
    "wide": (lambda: png(20_000, 1), r"it would have 5120000 x 256 pixels"),
    "large": (lambda: png_of(9_000, 9_000), r"it has 9000 x 9000 pixels; at most 67108864 are taken\. Scale it down"),
    "huge": (lambda: png_of(60_000, 60_000), r"Image size \(3600000000 pixels\) exceeds limit"),
    "endless": (lambda: png_of(2**31 - 1, 2**31 - 1), r"Cannot read the image|exceeds limit"),
}


@pytest.mark.parametrize("name", IMAGE_BOMBS)
def test_an_image_of_too_many_pixels_is_refused(tmp_path, name, peak):
    make, message = IMAGE_BOMBS[name]
    path = tmp_path / "bomb.png"
    path.write_bytes(make())

    found = peak(IMAGES, READ_IMAGE, path)

    assert_refused(found, "ImageError", message, max_bytes=64 << 20)


def test_an_image_of_as_many_pixels_as_are_taken_is_read_within_the_bound(tmp_path, peak):
    path = tmp_path / "largest.png"
    path.write_bytes(png(8192, 8192))

    found = peak(IMAGES, READ_IMAGE, path)

    assert found.said is None
    assert found.num_bytes < MAX_BYTES


def assert_refused(peak, error_type, message, *, max_bytes=MAX_BYTES):
    import re

    assert peak.said is not None
    assert peak.said.startswith(f"{error_type}: ")
    assert re.search(message, peak.said), peak.said
    assert "\n" not in peak.said
    assert peak.num_bytes < max_bytes


def manifest_of(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BUNDLE_BOMBS = {
    "all slots": ({"capacity": 2**31 - 1}, r"The bundle states 2147483647 slots; at most \d+ with rows of \d+ values"),
    "many slots": ({"capacity": 1_000_000}, r"states 1000000 slots of \d+ values, \d+ bytes; the model .* has \d+\."),
    "wide rows": ({"feature_dim": 2**31 - 1}, r"slots; at most 0 with rows of 2147483648 values are kept"),
    "nested": ({"parity": [{"a": [[]] * 1_500_000}]}, r"it holds more than 2097152 JSON values"),
    "long": ({"base_fingerprint": "é" * (1 << 26)}, r"larger than 67108864 bytes, which no manifest is"),
}


@pytest.mark.parametrize("name", BUNDLE_BOMBS)
def test_a_manifest_that_asks_for_too_much_is_refused(tmp_path, name, peak):
    changes, message = BUNDLE_BOMBS[name]
    folder = write_bundle(tmp_path / "bundle")
    manifest_of(folder, **changes)

    found = peak("from icis_deploy import Device; import onnxruntime", "Device.open(sys.argv[1])", folder)

    assert_refused(found, "BundleError", message, max_bytes=300 << 20)


def mat_v5(unpacked_size, *, stated=None):
    """A packed element of zeros that unpacks to `unpacked_size` bytes."""
    packer = zlib.compressobj(1)
    packed = packer.compress(struct.pack("<II", 14, unpacked_size if stated is None else stated))
    packed += b"".join(packer.compress(bytes(1 << 22)) for _ in range(unpacked_size >> 22)) + packer.flush()
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed


def mat_array(kind, shape, values=b"", *, name=b"att", stored=9):
    def element(number, data):
        return struct.pack("<II", number, len(data)) + data + bytes(-len(data) % 8)

    dimensions = struct.pack(f"<{len(shape)}i", *shape)
    inside = (
        element(6, struct.pack("<II", kind, 0)) + element(5, dimensions) + element(1, name) + element(stored, values)
    )
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 14, len(inside)) + inside


def npz_of_zeros(num_bytes):
    def array(shape, dtype):
        header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("names.npy", array((2,), "<U1") + "ab".encode("utf-32-le"))
        with archive.open("values.npy", "w", force_zip64=True) as member:
            member.write(array((2, num_bytes // 8), "<f4"))
            for _ in range(num_bytes >> 22):
                member.write(bytes(1 << 22))
    return buffer.getvalue()


def v4():
    return struct.pack("<iiiii", 0, 2**30, 2, 0, 4) + b"att\0" + bytes(200)


DESCRIPTOR_BOMBS = {
    "zeros.npz": (lambda: npz_of_zeros(1 << 29), r"unpack to 536871\d+; at most 268435456 are read of such a file"),
    "zeros.mat": (lambda: mat_v5(1 << 29), r"its arrays unpack to more than 268435456 bytes"),
    "level 4.mat": (v4, r"it is no MATLAB file of level 5"),
    "numbers.mat": (lambda: mat_array(6, (2**30, 8)), r"'att' of shape \(1073741824, 8\) has 0 bytes of values"),
    "text.mat": (lambda: mat_array(4, (1, 2**31 - 1), stored=16), r"'att' of shape \(1, 2147483647\) has 0 bytes"),
    "cells.mat": (lambda: mat_array(1, (1, 2**31 - 1)), r"'att' states 2147483647 cells in \d+ bytes"),
    "cells in cells.mat": (
        lambda: mat_array(1, (1, 1), mat_array(1, (1, 1))[136:], stored=14),
        r"a cell of the array 'att' holds neither",
    ),
    "struct.mat": (lambda: mat_array(2, (2**20, 2**10)), r"'att' holds neither real numbers nor text"),
    "cells.csv": (lambda: b"name" + b",a" * (1 << 25) + b"\n", r"more than \d+ cells"),
    "row.csv": (lambda: b"name" + b",a" * 3_000_000 + b"\ncat" + b",1" * 3_000_000, r"line 1 is longer than \d+ "),
    "lines.csv": (lambda: b"\n" * (2 + (1 << 25)), r"more than \d+ cells"),
    "field.csv": (lambda: b"name,a\ncat," + b"1" * 200_000, r"field larger than field limit"),
}


@pytest.mark.parametrize("name", DESCRIPTOR_BOMBS)
def test_a_descriptor_file_that_unpacks_to_too_much_is_refused(tmp_path, name, peak):
    make, message = DESCRIPTOR_BOMBS[name]
    path = tmp_path / name
    path.write_bytes(make())

    setup = "import scipy.io; from icis_deploy.descriptors.files import load_descriptors"
    found = peak(setup, "load_descriptors(sys.argv[1])", path)

    assert_refused(found, "DescriptorError", message)


def safetensors_of(num_tensors):
    entry = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = ("{" + ",".join(entry % index for index in range(num_tensors)) + "}").encode()
    return struct.pack("<Q", len(text)) + text


LIST_BOMBS = {
    "tensors": (
        lambda: safetensors_of(200_000),
        "from icis_deploy.common.tensor_files import load_tensors",
        "load_tensors(Path(sys.argv[1]).read_bytes())",
        r"ValueError: it names 200000 tensors; at most 64 are read",
    ),
    "header": (
        lambda: safetensors_of(500_000),
        "from icis_deploy.common.tensor_files import load_tensors",
        "load_tensors(Path(sys.argv[1]).read_bytes())",
        r"ValueError: its header claims \d+ bytes, of \d+ and at most 16777216",
    ),
    "class list": (
        lambda: b"\n" * (1 << 25),
        "from icis_deploy.head.class_names import load_class_list",
        "load_class_list(Path(sys.argv[1]))",
        r"LoadError: The class list \S+ has 33554432 lines; at most 4194304 are read\.",
    ),
    "image list": (
        lambda: b"file,class\n" + b"a,b\n" * (1 << 24),
        "from icis_deploy.images.loading import load_image_list",
        "load_image_list(Path(sys.argv[1]))",
        r"ImageError: The image list \S+ is not a CSV file in UTF-8: it has more than 33554432 cells",
    ),
}


@pytest.mark.parametrize("name", LIST_BOMBS)
def test_a_list_of_too_many_things_is_refused(tmp_path, name, peak):
    make, setup, call, message = LIST_BOMBS[name]
    path = tmp_path / "bomb"
    path.write_bytes(make())

    found = peak(setup, call, path)

    assert_refused(found, message.partition(":")[0], message)


def pt2_of_zeros(num_bytes):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("weights", "constants"):
            archive.writestr(f"model/data/{name}/model_{name}_config.json", json.dumps({"config": {}}))
        with archive.open("model/data/weights/weight_0", "w", force_zip64=True) as member:
            for _ in range(num_bytes >> 20):
                member.write(bytes(1 << 20))
    return buffer.getvalue()


def onnx_of_external(num_values):
    """A model whose one weight states more values than its file, which is not there, or any memory has."""
    import onnx

    weight = onnx.TensorProto(name="head", dims=[num_values // 4, 4], data_type=onnx.TensorProto.FLOAT)
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "bomb", "offset": "0", "length": str(4 * num_values)}.items():
        weight.external_data.add(key=key, value=value)
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 4])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", num_values // 4])
    node = onnx.helper.make_node("Gemm", ["image", "head"], ["logits"], transB=1)
    graph = onnx.helper.make_graph([node], "bomb", [image], [logits], [weight])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]).SerializeToString()


OTHER_BOMBS = {
    "vectors in one line": (
        lambda: b"word " + b"0.5 " * (1 << 25),
        "from icis_deploy.descriptors.word_vectors import read_vectors",
        "read_vectors(Path(sys.argv[1]), {'word'})",
        r"DescriptorError: .*, line 1: longer than 1048576 bytes",
    ),
    "packed vectors": (
        lambda: gzip.compress(b"0" * (1 << 24), 1) * (1 << 6),  # 1 GiB: a file of members is what they are together
        "from icis_deploy.descriptors.word_vectors import read_vectors",
        "read_vectors(Path(sys.argv[1]), {'word'})",
        r"DescriptorError: .*, line 1: longer than 1048576 bytes",
    ),
    "public key": (
        lambda: b"-----BEGIN PUBLIC KEY-----\n" + b"A" * (1 << 28),
        "from icis_deploy.updates.signing import load_public_key",
        "load_public_key(Path(sys.argv[1]))",
        r"SignatureError: The public key \S+ is larger than 4096 bytes",
    ),
    "private key": (
        lambda: b"-----BEGIN PRIVATE KEY-----\n" + b"A" * (1 << 28),
        "from icis_deploy.updates.signing import load_private_key",
        "load_private_key(Path(sys.argv[1]))",
        r"SignatureError: The private key \S+ is larger than 4096 bytes",
    ),
    "result": (
        lambda: b'{"schema_version": 1, "runs": [' + b"[]," * (1 << 26) + b"[]]}",
        "from icis_deploy.results import load_result",
        "load_result(Path(sys.argv[1]))",
        r"LoadError: .*(holds more than \d+ JSON values|than 268435456 bytes)",
    ),
    "program": (
        lambda: pt2_of_zeros(1 << 30),
        "from exporters.loading.torch_export import load_program; import torch",
        "load_program(Path(sys.argv[1]))",
        r"ModelLoadError: .*unpack to 10737\d+; at most \d+ are read",
    ),
    "weights in another file": (
        lambda: onnx_of_external(1 << 40),
        "from exporters.loading.models import load_model; import onnxruntime",
        "load_model(sys.argv[1])",
        r"ModelLoadError: ",
    ),
}


@pytest.mark.parametrize("name", OTHER_BOMBS)
def test_vectors_keys_results_programs_and_weights_are_bounded(tmp_path, name, peak):
    make, setup, call, message = OTHER_BOMBS[name]
    suffixes = {"packed vectors": ".gz", "program": ".pt2", "weights in another file": ".onnx"}
    path = tmp_path / f"bomb{suffixes.get(name, '')}"
    path.write_bytes(make())
    if name == "weights in another file":
        (tmp_path / "bomb").write_bytes(bytes(64))

    found = peak(setup, call, path)

    assert_refused(found, message.partition(":")[0], message)
