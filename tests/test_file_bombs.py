"""Files that are small, or state little, and would take gigabytes: each is refused in one line, with little memory."""

import io
import json
import struct
import zlib

import PIL.Image
import pytest

from testing.bundles import write_bundle
from testing.peak_memory import peak_of

MAX_BYTES = 400 << 20
"""What reading a bomb may take: an image of as many pixels as are taken, and what it is resized to, need as much."""

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
def test_an_image_of_too_many_pixels_is_refused(tmp_path, name):
    make, message = IMAGE_BOMBS[name]
    path = tmp_path / "bomb.png"
    path.write_bytes(make())

    peak = peak_of(IMAGES, READ_IMAGE, path)

    assert_refused(peak, "ImageError", message, max_bytes=64 << 20)


def test_an_image_of_as_many_pixels_as_are_taken_is_read_within_the_bound(tmp_path):
    path = tmp_path / "largest.png"
    path.write_bytes(png(8192, 8192))

    peak = peak_of(IMAGES, READ_IMAGE, path)

    assert peak.said is None
    assert peak.num_bytes < MAX_BYTES


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
def test_a_manifest_that_asks_for_too_much_is_refused(tmp_path, name):
    changes, message = BUNDLE_BOMBS[name]
    folder = write_bundle(tmp_path / "bundle")
    manifest_of(folder, **changes)

    peak = peak_of("from icis_deploy import Device; import onnxruntime", "Device.open(sys.argv[1])", folder)

    assert_refused(peak, "BundleError", message, max_bytes=300 << 20)
