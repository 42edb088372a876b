"""A device answers whatever somebody has an image as in Python, each as it answers the file."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import icis_deploy
from icis_deploy.errors import DescriptorError, ICISDeployError, ImageError, IncompatibleError, UsageError
from icis_deploy.runtime.device import STREAM_BATCH, Device
from testing.bundles import write_bundle
from testing.tiny_project import SIDE, TinyProject


@pytest.fixture(scope="module", params=["float32", "uint8"])
def device(request, tiny_project: TinyProject, tmp_path_factory) -> Device:
    out = tmp_path_factory.mktemp("values") / "bundle"
    form = icis_deploy.ModelForm(model_input=request.param)
    options = icis_deploy.ExportOptions(head="updatable", preprocess=tiny_project.preprocess, form=form)
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=out, options=options)
    return Device.open(out)


@pytest.fixture
def path(tiny_project: TinyProject) -> Path:
    return tiny_project.images.parent / "class03.png"


def encoded(path: Path) -> bytes:
    buffer = io.BytesIO()
    Image.open(path).save(buffer, "PNG")
    return buffer.getvalue()


def channels_first(path: Path) -> object:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.moveaxis(np.asarray(Image.open(path)), -1, 0).copy())


WAYS = {
    "text": lambda path, _: str(path),
    "path": lambda path, _: path,
    "list of texts": lambda path, _: [str(path)],
    "bytes": lambda path, _: encoded(path),
    "Pillow": lambda path, _: Image.open(path),
    "list of Pillow": lambda path, _: [Image.open(path)],
    "array": lambda path, _: np.asarray(Image.open(path)),
    "array of a batch": lambda path, _: np.asarray(Image.open(path))[None],
    "with alpha": lambda path, _: np.asarray(Image.open(path).convert("RGBA")),
    "tensor, channels first": lambda path, _: channels_first(path),
    "batch of tensors": lambda path, _: channels_first(path)[None],
    "iterator": lambda path, _: iter([path]),
    "generator": lambda path, _: (one for one in [Image.open(path)]),
    "prepared": lambda path, device: device.prepare(path),
    "prepared, alone": lambda path, device: device.prepare(path)[0],
    "list of prepared": lambda path, device: [device.prepare(path)[0]],
}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_in_any_form_is_answered_as_its_file(device, path, way):
    assert device.predict(WAYS[way](path, device)) == device.predict([path])


def test_arrays_and_grey_pictures_are_prepared_as_pillow_prepares_them(device):
    grey = np.random.default_rng(0).integers(0, 256, (SIDE + 3, SIDE + 9), dtype=np.uint8)
    for same in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(device.prepare(same), device.prepare(Image.fromarray(grey)))


def test_a_text_is_one_path_and_never_its_characters(device):
    with pytest.raises(ImageError, match=r"Cannot read the image okapi\.jpg: No such file"):
        device.predict("okapi.jpg")


def test_an_iterator_is_read_as_far_as_it_is_answered(device, path):
    read = []

    def images():
        for index in range(STREAM_BATCH + 3):
            read.append(index)
            yield path
        raise KeyError("the next batch is asked for")

    with pytest.raises(KeyError):
        device.predict(images())
    assert len(device.predict(iter([path] * (STREAM_BATCH + 3)))) == STREAM_BATCH + 3


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, UsageError, "cannot be 'int'; expected paths"),
        (None, UsageError, "cannot be 'NoneType'"),
        ({"a": 1}, UsageError, "cannot be 'dict'"),
        ([3], UsageError, "input 0 is the number 3"),
        ([object()], UsageError, "input 0 cannot be 'object'"),
        (np.zeros((3, 4), np.float32), ImageError, r"has shape \(4,\) and dtype float32; the bundle's model takes"),
        (
            [np.zeros((0, 0, 3), np.uint8)],
            ImageError,
            r"has shape \(0, 0, 3\) and dtype uint8; the bundle's model takes",
        ),
        ([np.zeros((0, 5), np.uint8)], ImageError, r"has shape \(0, 5\) and dtype uint8; the bundle's model takes"),
        ([b"no image"], ImageError, "is not an image that Pillow can read"),
        ([np.array(["a"])], UsageError, "input 0 cannot be 'ndarray'"),
    ],
)
def test_what_is_no_image_is_named(device, given, error, message):
    with pytest.raises(error, match=message) as raised:
        device.predict(given)
    assert isinstance(raised.value, ICISDeployError)


def test_nothing_gives_no_answers(device):
    assert device.predict([]) == []


def test_images_need_a_bundle_that_says_how_they_are_prepared(tmp_path, path):
    device = Device.open(write_bundle(tmp_path / "bundle"))
    with Image.open(path) as image:
        picture = image.copy()
    for given in (path, [picture], path.read_bytes()):
        with pytest.raises(IncompatibleError, match="does not state how images are prepared"):
            device.predict(given)


def test_numbers_of_any_form_are_inputs_of_a_model_without_preprocessing(tmp_path):
    device = Device.open(write_bundle(tmp_path / "bundle"))
    rows = np.arange(12).reshape(2, 6) / 7
    expected = device.predict(rows.astype(np.float32))
    np.save(tmp_path / "rows.npy", rows)

    for given in (rows, rows.tolist(), list(rows), iter(rows), tmp_path / "rows.npy", str(tmp_path / "rows.npy")):
        assert device.predict(given) == expected
    assert device.predict(rows[1]) == expected[1:]
    assert device.predict(np.arange(6, dtype=np.uint8)) == device.predict(np.arange(6, dtype=np.float32)[None])


@pytest.mark.parametrize("is_list", [False, True])
def test_a_masked_value_is_missing_and_not_what_stands_behind_the_mask(tmp_path, is_list):
    device, values = Device.open(write_bundle(tmp_path / "bundle")), np.ones((2, 6), dtype=np.float32)
    whole, missing = np.ma.masked_array(values), np.ma.masked_array(values, mask=[[False] * 6, [True] + [False] * 5])

    assert device.predict(list(whole) if is_list else whole) == device.predict(values)
    with pytest.raises(ImageError, match=r"masks 1 of its (6|12) values, which are missing\. Fill missing values"):
        device.predict(list(missing) if is_list else missing)


def test_a_table_of_pandas_is_a_batch(tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    device = Device.open(write_bundle(tmp_path / "bundle"))
    rows = np.arange(12).reshape(2, 6) / 7

    assert device.predict(pandas.DataFrame(rows)) == device.predict(rows)
    mixed = pandas.DataFrame({"a": [1, 2], "b": [True, False], **{name: [0.5, 1.5] for name in "cdef"}})
    assert device.predict(mixed) == device.predict(mixed.to_numpy().astype(np.float32))
    with pytest.raises(UsageError, match="columns that are no numbers"):
        device.predict(mixed.assign(a=["x", "y"]))


def test_predictions_become_dicts_json_and_rows_of_a_table(device, path):
    (prediction,) = device.predict(path, top=2)
    first, second = prediction.class_names

    assert json.loads(json.dumps(prediction.to_dict())) == {
        "version": device.version,
        "classes": [
            {"name": first, "probability": prediction.probabilities[0]},
            {"name": second, "probability": prediction.probabilities[1]},
        ],
    }
    rows = prediction.rows(str(path))
    assert [(row["image"], row["rank"], row["class"]) for row in rows] == [
        (str(path), 1, first),
        (str(path), 2, second),
    ]
    logits = device.logits(device.prepare(path))
    assert json.loads(json.dumps(logits.to_dict()))["classes"] == list(device.classes())


def test_a_device_closes_at_the_end_of_its_block(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    inputs = np.zeros((1, 6), np.float32)
    with Device.open(folder) as device:
        before = device.predict(inputs)
        assert repr(device) == (
            f"<Device {str(folder)!r}: version 0, 3 classes, 0 of 4 slots filled, takes (6,) float32, onnxruntime>"
        )
    for use in (lambda: device.predict(inputs), device.classes, lambda: device.version, lambda: device.apply(b"")):
        with pytest.raises(UsageError, match=r"is closed\. Open it again with Device\.open"):
            use()
    device.close()
    assert repr(device) == f"<Device {str(folder)!r}, closed>"
    assert Device.open(folder).predict(inputs) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_closes_what_it_never_used(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    device = Device.open(folder)
    child = os.fork()
    if child == 0:
        device.close()
        os._exit(0 if repr(device) == f"<Device {str(folder)!r}, closed>" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert device.classes()


def test_an_error_in_the_block_closes_it_and_is_raised(tmp_path):
    with pytest.raises(KeyError), Device.open(write_bundle(tmp_path / "bundle")) as device:
        raise KeyError("mine")
    with pytest.raises(UsageError, match="is closed"):
        device.classes()


def test_the_repr_of_a_device_says_what_is_disabled(tmp_path):
    device = Device.open(write_bundle(tmp_path / "bundle"))
    device.disable("dog")

    assert "2 classes, 0 of 4 slots filled, 1 disabled" in repr(device)
    assert device.disabled_classes() == ("dog",)


def test_a_request_in_flight_ends_when_another_thread_closes(tmp_path):
    device = Device.open(write_bundle(tmp_path / "bundle"))
    started, found = threading.Event(), []

    def images():
        yield np.zeros(6, np.float32)
        started.set()
        closed.wait(10)

    closed = threading.Event()
    thread = threading.Thread(target=lambda: found.extend(device.predict(list(images()))))
    thread.start()
    assert started.wait(10)
    closed.set()
    thread.join()
    device.close()
    assert len(found) == 1


def test_torch_is_not_imported_to_look_for_its_tensors(tmp_path):
    import subprocess

    folder = write_bundle(tmp_path / "bundle")
    program = (
        "import sys, icis_deploy\n"
        f"icis_deploy.Device.open({str(folder)!r}).predict([[0.0] * 6])\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_class_names_and_descriptors_in_python_are_those_of_files(tiny_project):
    described = icis_deploy.load_descriptors(tiny_project.descriptors)
    opened = icis_deploy.inspect(tiny_project.model, classes=list(tiny_project.seen_names))
    by_number = icis_deploy.inspect(tiny_project.model, classes=dict(enumerate(tiny_project.seen_names)))
    expected = icis_deploy.inspect(tiny_project.model, classes=tiny_project.classes)
    options = icis_deploy.InjectionOptions(method="ridge", calibration="length")
    vectors = dict(zip(described.class_names, described.values, strict=True))
    given = [described, vectors, {name: vector.tolist() for name, vector in vectors.items()}, tiny_project.descriptors]

    assert opened.head.fingerprint == by_number.head.fingerprint == expected.head.fingerprint
    updates = [icis_deploy.inject(opened, descriptors=one, options=options) for one in given]
    assert all(update == updates[0] for update in updates[1:])


def test_a_table_of_descriptors_has_the_names_as_index_or_as_column(tiny_project):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from icis_deploy.api.inputs import descriptors_from

    described = icis_deploy.load_descriptors(tiny_project.descriptors)
    table = pandas.DataFrame(described.values, index=list(described.class_names))

    assert descriptors_from(table) == described
    assert descriptors_from(table.reset_index(names="class")) == described
    assert descriptors_from(dict(table.iterrows())) == described


def test_numbered_names_in_another_order_than_their_numbers_are_refused():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from icis_deploy.api.inputs import required_class_names

    names = pandas.Series(["zebra", "okapi", "owl"])
    assert required_class_names(names) == ("zebra", "okapi", "owl")
    with pytest.raises(
        UsageError, match=r"^The class names are a Series whose rows are numbered \[1, 2, 0\]; expected"
    ):
        required_class_names(names.sort_values())
    assert required_class_names(names.sort_values().tolist()) == ("okapi", "owl", "zebra")


def test_tables_whose_numbers_or_rows_stand_in_another_order_are_refused():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from icis_deploy.api.inputs import descriptors_from

    table = pandas.DataFrame({"stripes": [1.0, 0.0], "hooves": [2.0, 3.0]}, index=["okapi", "owl"])
    with pytest.raises(DescriptorError, match=r"^The numbers of 'owl' are called \('hooves', 'stripes'\); those of a"):
        descriptors_from({"okapi": table.loc["okapi"], "owl": table.loc["owl", ["hooves", "stripes"]]})
    with pytest.raises(DescriptorError, match=r"^The rows of the values are named 'okapi', 'owl'; the class names are"):
        icis_deploy.Descriptors(values=table, class_names=["owl", "okapi"])
    assert icis_deploy.Descriptors(values=table, class_names=["okapi", "owl"]).values[1, 1] == 3
    assert icis_deploy.Descriptors(values=table.reset_index(drop=True), class_names=["owl", "okapi"]).values[1, 1] == 3
    twice = pandas.DataFrame([["okapi", "owl", 1.0]], columns=["class", "class", "stripes"])
    with pytest.raises(DescriptorError, match=r"^The table of descriptors has several columns 'class'"):
        descriptors_from(twice)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": [1.0, 2.0], "b": [1.0]}, r"The descriptor of 'b' is \[1\.0\]; expected 2 numbers, as the first has"),
        ({"a": "text"}, "The descriptor of 'a' is 'text'; expected numbers"),
        ({3: [1.0]}, "A descriptor is of 3; expected the name of a class"),
        ({}, "There are no descriptors"),
        ([1.0], "Descriptors cannot be 'list'"),
    ],
)
def test_descriptors_that_are_none_are_named(tiny_project, given, message):
    with pytest.raises(ICISDeployError, match=message):
        icis_deploy.inject(tiny_project.model, classes=tiny_project.classes, descriptors=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [({0: "a", 2: "b"}, "The names by number have none for 1"), (["a", 3], "The class name 3 is 'int'; expected text")],
)
def test_class_names_that_are_none_are_named(tiny_project, given, message):
    with pytest.raises(UsageError, match=message):
        icis_deploy.inspect(tiny_project.model, classes=given)


def test_images_of_every_form_measure_what_a_list_does(device, tiny_project):
    names = (*tiny_project.seen_names, *tiny_project.unseen_names)
    files = {name: tiny_project.images.parent / f"{name}.png" for name in names}
    pictures = [np.asarray(Image.open(file)) for file in files.values()]

    ways = [
        {name: [file] for name, file in files.items()},
        {name: file.read_bytes() for name, file in files.items()},
        (pictures, names),
        (np.stack(pictures), list(names)),
        ((file for file in files.values()), names),
    ]
    for images in ways:
        unseen = tiny_project.unseen_names
        found = icis_deploy.evaluate(device, images=images, unseen=unseen).to_json()
        assert found == icis_deploy.evaluate(device, images=tiny_project.images, unseen=unseen).to_json()
