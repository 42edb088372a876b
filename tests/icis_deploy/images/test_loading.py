import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from icis_deploy.errors import ImageError
from icis_deploy.images import loading as images
from icis_deploy.images.inputs import InputForm, prepared_batches
from icis_deploy.images.loading import (
    list_images,
    load_image_list,
    load_images,
    load_pixels,
    open_inputs,
)
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.images.sources import labels_of

PREPROCESSING = Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three images and a list of them."""
    for index in range(3):
        Image.fromarray(PIXELS // (index + 1)).save(tmp_path / f"{index}.png")
    (tmp_path / "images.csv").write_text("file,class\n0.png,ant\n1.png,bee\n2.png,ant\n")
    return tmp_path


def listed(folder, data):
    path = folder / "images.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# --- lists --------------------------------------------------------------------------------------------------------


def test_a_list_names_files_beside_it_and_their_classes(folder):
    found = load_image_list(folder / "images.csv")

    assert found.paths == tuple(folder / f"{index}.png" for index in range(3))
    assert found.labels == ("ant", "bee", "ant")


def test_columns_may_come_in_any_order_with_others_between_them(folder):
    path = listed(folder, '\ufeffclass,source,file\r\n"ant, red",web,0.png\r\n\r\nBärin,,1.png\r\n')

    assert load_image_list(path).labels == ("ant, red", "Bärin")


def test_a_file_may_be_in_a_folder_below_or_anywhere(folder):
    (folder / "deep").mkdir()
    (folder / "0.png").rename(folder / "deep" / "0.png")
    path = listed(folder, f"file,class\ndeep/0.png,ant\n{folder / '1.png'},bee\n")

    assert load_image_list(path).paths == (folder / "deep" / "0.png", folder / "1.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", r"The image list \S+ has no rows; expected a header `file,class` and a line per image\."),
        ("file,class\n", r"The image list \S+ has no rows; expected a header"),
        (
            "file,label\n0.png,ant\n",
            r"The image list \S+ has the columns 'file', 'label'; expected a header `file,class`",
        ),
        ("path,class\n0.png,ant\n", r"The image list \S+ has the columns 'path', 'class'; expected a header"),
        ("0.png,ant\n1.png,bee\n", r"The image list \S+ has the columns '0\.png', 'ant'; expected a header"),
        ("file;class\n0.png;ant\n", r"The image list \S+ has the columns 'file;class'; expected a header"),
        ("file,class\n0.png,ant\n1.png\n", r"The image list \S+ lacks a file or a class in line 3\."),
        ("file,class\n0.png,ant, red\n", r"The image list \S+ has 3 cells in line 2; its header names 2\."),
        ("file,file,class\n0.png,1.png,ant\n", r"The image list \S+ has the columns 'file', 'file', 'class'; "),
        ('file,class\n"0.png,ant\n', r"The image list \S+ is not a CSV file in UTF-8: unexpected end of data\. Close "),
        ("file,class\n,ant\n", r"The image list \S+ lacks a file or a class in line 2\."),
        ("file,class\n0.png,ant\nno.png,bee\n", r"The image list \S+ names 'no\.png' in line 3, which is not at /"),
        ("file,class\n.,ant\n", r"The image list \S+ names '\.' in line 2, which is not at "),
        ("file,class\n" + "x" * 300 + ",ant\n", r"The image list \S+ names 'x{79}… in line 2, which is not at "),
        ("file,class\nnull\0byte,ant\n", r"The image list \S+ names 'null\\x00byte' in line 2, which is not at "),
        (b"file,class\n\xff.png,ant\n", r"The image list \S+ is not a CSV file in UTF-8: 'utf-8' codec can't decode"),
    ],
)
def test_a_list_that_cannot_be_followed_is_refused(folder, data, message):
    with pytest.raises(ImageError, match=f"^{message}"):
        load_image_list(listed(folder, data))


def test_empty_cells_after_those_of_the_header_are_what_spreadsheets_leave(folder):
    assert load_image_list(listed(folder, "file,class\n0.png,ant,,\n")).labels == ("ant",)


def test_a_line_is_counted_as_an_editor_counts_it(folder):
    path = listed(folder, 'file,class\n\n0.png,"ant\nred"\n\nno.png,bee\n')

    with pytest.raises(ImageError, match=r"names 'no\.png' in line 6, which is not at"):
        load_image_list(path)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"^Cannot read the image list \S+images\.csv: No such file or directory\."):
        load_image_list(tmp_path / "images.csv")


def test_a_list_over_the_cap_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_LIST_BYTES", 10)

    with pytest.raises(ImageError, match=r"^The image list \S+ is larger than 10 bytes"):
        load_image_list(folder / "images.csv")


# --- images -------------------------------------------------------------------------------------------------------


def test_images_are_prepared_in_the_order_asked_for(folder):
    batch = load_images([folder / "2.png", folder / "0.png"], PREPROCESSING)

    assert batch.dtype == np.float32
    assert batch.shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(batch[0], PREPROCESSING.prepare(Image.open(folder / "2.png")))
    np.testing.assert_array_equal(batch[1], PREPROCESSING.prepare(Image.open(folder / "0.png")))


def test_no_images_are_an_empty_batch():
    assert load_images([], PREPROCESSING).shape == (0, 3, 8, 8)


def test_batches_together_are_all_images_and_the_last_may_be_smaller(folder):
    form = InputForm(shape=PREPROCESSING.input_shape, preprocessing=PREPROCESSING)
    batches = list(prepared_batches(list_images(folder / "images.csv"), form, batch_size=2))

    assert [batch.labels for batch in batches] == [("ant", "bee"), ("ant",)]
    assert batches[1].keys == (str(folder / "2.png"),)
    expected = load_images([folder / f"{index}.png" for index in range(3)], PREPROCESSING)
    np.testing.assert_array_equal(np.concatenate([batch.inputs for batch in batches]), expected)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_by_exif():
    image, exif = Image.fromarray(PIXELS), Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show
    return encoded(image, "JPEG", exif=exif)


GREY = Image.fromarray(PIXELS[:, :, 0])
FILES = {
    "rgb.jpg": lambda: encoded(Image.fromarray(PIXELS), "JPEG"),
    "grey.jpg": lambda: encoded(GREY, "JPEG"),
    "cmyk.jpg": lambda: encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "exif.jpg": rotated_by_exif,
    "palette.png": lambda: encoded(GREY.convert("P"), "PNG"),
    "transparent palette.png": lambda: encoded(GREY.convert("P"), "PNG", transparency=bytes(range(256))),
    "transparent colour.png": lambda: encoded(GREY.convert("P"), "PNG", transparency=3),
    "alpha.png": lambda: encoded(Image.fromarray(PIXELS).convert("RGBA"), "PNG"),
    "grey alpha.png": lambda: encoded(GREY.convert("LA"), "PNG"),
    "one bit.png": lambda: encoded(GREY.convert("1"), "PNG"),
    "sixteen bits.png": lambda: encoded(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257), "PNG"),
    "animation.gif": lambda: encoded(GREY, "GIF", save_all=True, append_images=[GREY.convert("P")]),
    "image.webp": lambda: encoded(Image.fromarray(PIXELS), "WEBP"),
    "image.bmp": lambda: encoded(Image.fromarray(PIXELS), "BMP"),
    "image.tiff": lambda: encoded(Image.fromarray(PIXELS), "TIFF"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_any_kind_are_prepared(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name]())
    batch = load_images([tmp_path / name], PREPROCESSING)

    assert np.isfinite(batch).all()
    assert 0.2 < batch.mean() < 0.8
    assert batch.std() > 0.02


def test_an_exif_orientation_is_not_applied(tmp_path):
    (tmp_path / "plain.jpg").write_bytes(FILES["rgb.jpg"]())
    (tmp_path / "exif.jpg").write_bytes(FILES["exif.jpg"]())
    plain, turned = load_images([tmp_path / "plain.jpg", tmp_path / "exif.jpg"], PREPROCESSING)

    np.testing.assert_array_equal(plain, turned)


def test_a_file_that_is_no_image_is_named(folder):
    with pytest.raises(ImageError, match=r"^\S+images\.csv is not an image that Pillow can read\."):
        load_images([folder / "0.png", folder / "images.csv"], PREPROCESSING)


def test_an_empty_file_is_no_image(tmp_path):
    (tmp_path / "empty.jpg").touch()

    with pytest.raises(ImageError, match=r"^\S+empty\.jpg is not an image that Pillow can read\."):
        load_images([tmp_path / "empty.jpg"], PREPROCESSING)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"^Cannot read the image \S+missing\.jpg: No such file or directory\."):
        load_images([tmp_path / "missing.jpg"], PREPROCESSING)


def test_a_truncated_jpeg_is_refused_and_not_filled_with_grey(tmp_path):
    data = FILES["rgb.jpg"]()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 3 // 4])

    with pytest.raises(ImageError, match=r"^Cannot read the image \S+cut\.jpg: .*[Tt]runcated"):
        load_images([tmp_path / "cut.jpg"], PREPROCESSING)


def test_a_picture_without_a_known_range_is_named(tmp_path):
    Image.fromarray(PIXELS[:, :, 0].astype(np.float32)).save(tmp_path / "float.tiff")

    with pytest.raises(ImageError, match=r"^Cannot read the image \S+float\.tiff: its pixels are 32-bit \(F\)"):
        load_images([tmp_path / "float.tiff"], PREPROCESSING)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(FILES["palette.png"]())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)

    with pytest.raises(ImageError, match=r"^Cannot read the image \S+bomb\.png: Image size \(180 pixels\) exceeds"):
        load_images([tmp_path / "bomb.png"], PREPROCESSING)


def eps_file():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "EPS")
    return file.getvalue()


def iptc_file(image):
    """Return an IPTC file of one pixel, by its header, that holds an image of any other format."""
    fields = [(60, b"\1\0"), (20, b"\0\0\0\1"), (30, b"\0\0\0\1"), (120, b"\5")]
    records = [(3, kind, value) for kind, value in fields] + [(8, 10, image)]
    return b"".join(b"\x1c" + bytes(head) + len(value).to_bytes(2, "big") + value for *head, value in records)


@pytest.mark.parametrize(("form", "data"), [("EPS", eps_file()), ("IPTC", iptc_file(eps_file()))], ids=["EPS", "IPTC"])
def test_no_image_makes_ghostscript_run_a_program(tmp_path, monkeypatch, form, data):
    calls = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: calls.append(given))
    (tmp_path / "drawn.png").write_bytes(data)

    with pytest.raises(ImageError, match=rf"^Cannot read the image \S+drawn\.png: it is {form}, a format"):
        load_images([tmp_path / "drawn.png"], PREPROCESSING)

    assert calls == []


def refusal_or_none(path):
    try:
        load_images([path], PREPROCESSING)
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["rgb.jpg", "palette.png", "animation.gif", "image.tiff", "image.bmp"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_image_is_refused_or_read_but_never_crashes(tmp_path_factory, name, data):
    damaged = bytearray(FILES[name]())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])

    refusal = refusal_or_none(path)
    assert refusal is None or str(path) in refusal


@pytest.mark.parametrize(("color", "layout"), [("RGB", "NCHW"), ("BGR", "NHWC"), ("L", "NCHW")])
def test_pixels_brought_to_the_model_are_the_prepared_image(color, layout, folder):
    channels = 1 if color == "L" else 3
    settings = Preprocessing(
        resize=8, crop=8, mean=(0.4, 0.5, 0.6)[:channels], std=(0.2, 0.3, 0.4)[:channels], color=color, layout=layout
    )
    pixels = load_pixels([folder / "0.png", folder / "2.png"], settings)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 8, 8, channels))
    prepared = load_images([folder / "0.png", folder / "2.png"], settings)
    np.testing.assert_array_equal(settings.from_pixels(pixels), prepared)


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image.png")

    with pytest.raises(ImageError, match=r"Cannot read the image .*image\.png: it is a pipe and no plain file"):
        load_images([tmp_path / "image.png"], PREPROCESSING)


# --- class folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def class_folders(folder):
    """The three pictures in a folder for each class, next to files that are no images."""
    root = folder / "by class"
    for name, files in {"ant": ("0.png", "2.png"), "bee": ("1.png",)}.items():
        (root / name).mkdir(parents=True)
        for file in files:
            (folder / file).rename(root / name / file)
    (root / "ant" / "notes.txt").write_text("no image")
    (root / ".thumbnails").mkdir()
    return root


def test_a_folder_of_class_folders_is_a_list_too(class_folders):
    found = load_image_list(class_folders)

    assert found.labels == ("ant", "ant", "bee")
    assert [path.name for path in found.paths] == ["0.png", "2.png", "1.png"]


def test_a_class_folder_without_an_image_is_named(class_folders):
    (class_folders / "cicada").mkdir()

    message = r"^There are class folders without an image in .*: 1, such as 'cicada'\."
    with pytest.raises(ImageError, match=message) as raised:
        load_image_list(class_folders)
    assert raised.value.found == ("cicada",)


def test_images_without_a_class_folder_have_no_class(folder):
    listed = list_images(folder)
    assert ([path.name for path in listed.paths], listed.labels) == (["0.png", "1.png", "2.png"], None)
    with pytest.raises(ImageError, match=r"holds 3 images without a class; expected one folder for each class, named"):
        load_image_list(folder)


def test_images_next_to_class_folders_are_refused(class_folders):
    (class_folders / "ant" / "0.png").rename(class_folders / "loose.png")
    with pytest.raises(ImageError, match=r"holds 2 images in class folders and 1 next to them"):
        list_images(class_folders)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "ant" / "deep").mkdir(parents=True)
    with pytest.raises(ImageError, match=r"There is no image in the folder .*, nor in the folders that it holds"):
        list_images(tmp_path)


def test_a_list_of_files_alone_says_no_class(folder):
    path = listed(folder, b"file\n1.png\n0.png\n")
    found = list_images(path)
    assert (found.paths, found.labels) == ((folder / "1.png", folder / "0.png"), None)
    with pytest.raises(ImageError, match=r"has the column 'file' alone; expected a header `file,class`"):
        load_image_list(path)


def test_a_list_with_classes_under_another_name_is_not_taken_for_one_without(folder):
    with pytest.raises(ImageError, match=r"has the columns 'file', 'label'; expected a header `file,class`"):
        list_images(listed(folder, b"file,label\n0.png,ant\n"))


# --- arrays -------------------------------------------------------------------------------------------------------

IMAGES = np.zeros((2, 3, 8, 8), dtype=np.float32)


def test_arrays_are_read_with_the_names_of_their_classes(tmp_path):
    np.savez(tmp_path / "images.npz", images=IMAGES, labels=np.array(["ant", "bee"]))
    found = open_inputs(tmp_path / "images.npz")

    np.testing.assert_array_equal(np.stack([item.value for item in found]), IMAGES)
    assert found.labels == ("ant", "bee")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": IMAGES, "labels": np.array(["ant"])}, "`bench\\(\\)` measures the accuracy of features"),
        (
            {"images": IMAGES, "labels": np.array(["ant"])},
            r"there are 2 inputs and 1 labels; expected a label for each",
        ),
        ({"images": IMAGES[:0], "labels": np.array([], dtype=str)}, r"the array has shape \(0, 3, 8, 8\); expected"),
        ({"images": IMAGES, "labels": np.array([0, 1])}, "the label .* is no name of a class"),
        ({"images": IMAGES, "labels": np.array([object(), "ant"])}, "Cannot read the inputs in "),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_their_path(tmp_path, arrays, message):
    np.savez(tmp_path / "images.npz", **arrays)

    with pytest.raises(ImageError, match=message) as raised:
        open_inputs(tmp_path / "images.npz")
    assert "images.npz" in str(raised.value)


def test_inputs_without_classes_are_refused_where_these_are_needed(tmp_path):
    np.savez(tmp_path / "images.npz", images=IMAGES)

    with pytest.raises(ImageError, match=r"Nothing says which classes the 2 inputs of .*images\.npz show"):
        labels_of(open_inputs(tmp_path / "images.npz"))


def test_a_file_that_holds_no_arrays_is_refused(tmp_path):
    (tmp_path / "images.npz").write_bytes(b"PK\x03\x04 and no more")

    with pytest.raises(ImageError, match=r"^Cannot read the inputs in "):
        open_inputs(tmp_path / "images.npz")


def test_an_image_file_over_the_cap_is_not_opened(folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 10)

    with pytest.raises(ImageError, match=r"^Cannot read the image \S+0\.png: it is \d+ bytes; at most 10 are read\."):
        load_images([folder / "0.png"], PREPROCESSING)
