"""Classifiers of tables, spectrograms and text go the whole way, on arrays alone, and nothing speaks of images."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.cli.main import run
from icis_deploy.errors import ICISDeployError, ImageError, UsageError
from testing.array_projects import NUM_SEEN, NUM_UNSEEN, SHAPES, ArrayProject, write_array_project


@pytest.fixture(scope="module", params=list(SHAPES))
def project(request, tmp_path_factory) -> ArrayProject:
    return write_array_project(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def files(project: ArrayProject, tmp_path_factory) -> Path:
    """What somebody has on the disk: classes, descriptors, arrays of several formats."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("files")
    (folder / "classes.txt").write_text("\n".join(project.seen_names) + "\n")
    np.savez(
        folder / "descriptors.npz",
        names=np.array(list(project.descriptors)),
        values=np.stack(list(project.descriptors.values())),
    )
    seen, labels = project.of(project.seen_names)
    np.savez(folder / "seen.npz", inputs=seen[::2], labels=np.array(labels[::2]))
    held_out = {"labels": json.dumps(project.labels[1::2])}
    save_file({"inputs": np.ascontiguousarray(project.inputs[1::2])}, folder / "test.safetensors", metadata=held_out)
    np.save(folder / "some.npy", project.inputs[:20])
    return folder


def speaks_of_images(text: str) -> list[str]:
    """Return the lines that speak of images, or of how these are prepared."""
    return [line for line in text.splitlines() if re.search(r"(?<![-\w])images?\b|preprocess", line, re.IGNORECASE)]


def test_the_command_line_takes_it_the_whole_way(project, files, tmp_path, capsys):
    model, classes, bundle = str(project.model), ["--classes", str(files / "classes.txt")], str(tmp_path / "bundle")
    seen, held_out = str(files / "seen.npz"), str(files / "test.safetensors")
    update = str(tmp_path / "new.icis")
    told = ""

    def ran(*arguments: str) -> str:
        nonlocal told
        code = run(list(arguments))
        out, err = capsys.readouterr()
        assert code == 0, err
        told += out + err
        return out

    described = ["--descriptors", str(files / "descriptors.npz"), "--method", "ridge"]
    assert "120 labelled inputs of 30 classes" in ran(
        "inject", model, *classes, *described, "--seen-images", seen, "--out", update
    )
    printed = ran(
        "export", model, *classes, "--head", "updatable", "--seen-images", seen, "--images", held_out, "--out", bundle
    )
    assert "slots                  256" in printed
    assert "140 inputs x 30 classes" in printed
    ran("apply", update, "--to", bundle, "--allow-unsigned")
    printed = ran("verify", bundle, "--against", model, "--images", held_out)
    assert printed.startswith("State 1, as a device serves it: 35 classes, 5 of them in slots.\n")
    assert "140 inputs x 35 classes" in printed
    assert "on 120 inputs" in printed
    assert "inputs of unseen classes, choosing among all classes" in ran("evaluate", bundle, "--images", held_out)
    assert f"{files / 'some.npy'}[19]" in ran("predict", bundle, str(files / "some.npy"))
    ran("bench", bundle, "--against", model, "--images", held_out, "--preset", "quick", "--seconds", "0.05")
    ran("compare-methods", model, *classes, *described[:2], "--method", "ridge", "--images", held_out)
    assert speaks_of_images(told) == []


def test_python_takes_it_the_whole_way_and_rows_are_worth_something(project, tmp_path):
    seen, labels = project.of(project.seen_names)
    opened = icis_deploy.inspect(project.model, classes=project.seen_names)
    injection = icis_deploy.InjectionOptions(method="ridge", seen_images=([*seen[::2]], labels[::2]))
    update = icis_deploy.inject(opened, descriptors=project.descriptors, options=injection)
    options = icis_deploy.ExportOptions(
        head="updatable", images=(project.inputs[1::2], project.labels[1::2]), seen_images=(seen[::2], labels[::2])
    )
    bundle = icis_deploy.export(opened, out=tmp_path / "bundle", options=options)
    with icis_deploy.Device.open(tmp_path / "bundle") as device:
        device.apply(update, allow_unsigned=True)
        report = icis_deploy.evaluate(device, images=(project.inputs[1::2], project.labels[1::2]))
        answers = device.predict(iter(project.inputs[-8:]), top=1)
    reports = icis_deploy.verify(tmp_path / "bundle", against=opened, images=project.inputs)

    assert (bundle.capacity, bundle.reference_source, bundle.preprocessing) == (256, "seen images", None)
    assert report.T > 0.9
    assert report.U > 0.3 > 2 / (NUM_SEEN + NUM_UNSEEN)
    assert report.S > 0.9
    assert [report.passed for report in reports] == [True, True]
    assert reports[0].num_images == len(project.inputs)
    assert "slots of version 1, as a device serves them" in reports[0].compared_with
    assert not speaks_of_images("\n".join(update.provenance["warnings"]))
    assert project.unseen_names[-1] in {answer.class_names[0] for answer in answers}


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_backbone_is_converted_on_arrays(project, files, tmp_path, precision):
    calibration = (project.inputs, None) if precision == "int8" else None
    form = icis_deploy.ModelForm(precision=precision, calibration_images=calibration)
    options = icis_deploy.ExportOptions(form=form, images=files / "test.safetensors")
    bundle = icis_deploy.export(project.model, classes=project.seen_names, out=tmp_path / "bundle", options=options)

    assert bundle.precision == precision


def test_photos_may_be_arrays_by_the_name_of_their_class(project):
    new = project.unseen_names[0]
    shots = project.inputs[[label == new for label in project.labels]][:2]
    seen = project.of(project.seen_names)
    options = icis_deploy.InjectionOptions(
        method="ridge", photos={new: list(shots)}, seen_images=([*seen[0][::2]], seen[1][::2])
    )
    update = icis_deploy.inject(
        project.model, classes=project.seen_names, descriptors=project.descriptors, options=options
    )

    assert update.provenance["photos"]["num_photos"] == {new: 2} or new in json.dumps(dict(update.provenance["photos"]))


def test_what_does_not_fit_is_said_in_the_words_of_arrays(project, tmp_path):
    icis_deploy.export(project.model, classes=project.seen_names, out=tmp_path / "bundle")
    wrong = np.zeros(
        (3, *SHAPES[next(kind for kind in SHAPES if project.seen_names[0].startswith(kind))], 2), np.float32
    )
    holes = project.inputs[:2].copy()
    holes[1].flat[0] = np.nan

    for call, expected in (
        (lambda: icis_deploy.evaluate(tmp_path / "bundle", images=(wrong, ["a", "b", "c"])), "does not know"),
        (
            lambda: icis_deploy.verify(tmp_path / "bundle", against=project.model, images=wrong),
            "the bundle's model takes",
        ),
        (
            lambda: icis_deploy.verify(tmp_path / "bundle", against=project.model, images=holes),
            "expected finite numbers",
        ),
        (lambda: icis_deploy.evaluate(tmp_path / "bundle", images=project.inputs), "Nothing says which classes"),
    ):
        with pytest.raises((ImageError, UsageError), match=expected) as raised:
            call()
        assert "preprocess" not in str(raised.value)


def test_images_for_a_model_of_arrays_are_refused_with_what_to_give(project, tiny_project, tmp_path):
    icis_deploy.export(project.model, classes=project.seen_names, out=tmp_path / "bundle")
    with pytest.raises(ICISDeployError, match="arrays as the model takes them"):
        icis_deploy.verify(tmp_path / "bundle", against=project.model, images=tiny_project.images)


def test_an_array_that_may_be_features_or_inputs_is_not_guessed(tmp_path):
    """A layer as wide as its input: rows of an array could be either."""
    import onnx
    import onnx.parser

    text = """
<ir_version: 8, opset_import: ["": 18]>
square (float[batch, 4] columns) => (float[batch, 3] logits) {
    hidden = MatMul (columns, backbone)
    positive = Relu (hidden)
    logits = Gemm <transB = 1> (positive, weight, bias)
}
"""
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    for name, shape in (("backbone", (4, 4)), ("weight", (3, 4)), ("bias", (3,))):
        array = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "model.onnx")
    names, rows = ["a", "b", "c"], random.normal(size=(6, 4)).astype(np.float32)
    described = {name: random.normal(size=3) for name in [*names, "new"]}
    options = icis_deploy.InjectionOptions(seen_images=(rows, ["a", "b", "c"] * 2))

    with pytest.raises(UsageError, match=r"can be inputs of the model or its features, which are as wide"):
        icis_deploy.inject(tmp_path / "model.onnx", classes=names, descriptors=described, options=options)
