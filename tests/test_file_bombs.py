"""Files that are small, or state little, and would take gigabytes: each is refused in one line, with little memory."""

import io
import struct
import zlib

import PIL.Image
import pytest

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
