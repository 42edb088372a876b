"""Accuracy of a bundle, on labelled images in every form, and what its new classes may cost."""

import csv
import io
import json
import shutil
import tarfile
import weakref

import numpy as np
import pytest
from PIL import Image

import icis_deploy
from icis_deploy.api.evaluate import save_class_table
from icis_deploy.api.evaluate_plot import save_curve_plot
from icis_deploy.api.models import head_of, inspect
from icis_deploy.cli.main import run
from icis_deploy.errors import ImageError, IncompatibleError, SeenLossError, UsageError
from icis_deploy.evaluation.measuring import INPUTS_OF_A_PIECE, usable_cores
from icis_deploy.images.loading import load_image_list
from icis_deploy.runtime.device import session_of
from testing.tiny_project import FEATURE_DIM


@pytest.fixture(scope="module")
def bundle(tiny_project, tmp_path_factory):
    """A fused head whose new classes take many images."""
    head = head_of(inspect(tiny_project.model, classes=tiny_project.classes))
    rows = np.random.default_rng(0).normal(size=(len(tiny_project.unseen_names), FEATURE_DIM + 1)).astype(np.float32)
    rows[:, -1] += 50
    update = icis_deploy.ClassUpdate(base_fingerprint=head.fingerprint, rows=rows, added=tiny_project.unseen_names)
    out = tmp_path_factory.mktemp("bundles") / "fused"
    options = icis_deploy.ExportOptions(preprocess=tiny_project.preprocess)
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, updates=[update], options=options, out=out)
    return out


@pytest.fixture(scope="module")
def report(bundle, tiny_project):
    return icis_deploy.evaluate(bundle, images=tiny_project.images)


@pytest.fixture(scope="module")
def crowded(bundle):
    """Random images as the model takes them, each labelled with the seen class that the original model answers with."""
    device = icis_deploy.Device.open(bundle)
    images = np.random.default_rng(0).normal(size=(600, *device.bundle.model_input.shape)).astype(np.float32)
    logits = device.logits(images).values[:, : device.bundle.num_seen]
    return images, [device.bundle.seen_names[column] for column in logits.argmax(axis=1)]


def test_class_folders_and_arrays_measure_what_a_list_does(bundle, tiny_project, report, tmp_path):
    listed = load_image_list(tiny_project.images)
    for path, label in zip(listed.paths, listed.labels, strict=True):
        (tmp_path / "folders" / label).mkdir(parents=True)
        shutil.copy(path, tmp_path / "folders" / label)
    device = icis_deploy.Device.open(bundle)
    prepared = device.prepare(listed.paths)
    np.savez(tmp_path / "images.npz", images=prepared, labels=np.array(listed.labels))

    for images in (tmp_path / "folders", tmp_path / "images.npz", (prepared, listed.labels)):
        assert icis_deploy.evaluate(device, images=images).to_json() == report.to_json()


def test_archives_uris_and_iterators_measure_what_a_list_does(bundle, tiny_project, report, tmp_path):
    listed = load_image_list(tiny_project.images)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, (path, label) in enumerate(zip(listed.paths, listed.labels, strict=True)):
            for suffix, data in ((path.suffix, path.read_bytes()), (".cls", label.encode())):
                info = tarfile.TarInfo(f"{number}{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    triples = [(str(path), label, path) for path, label in zip(listed.paths, listed.labels, strict=True)]
    device = icis_deploy.Device.open(bundle)

    for images in (tmp_path / "a.tar", (tmp_path / "a.tar").as_uri(), tiny_project.images.as_uri(), iter(triples)):
        assert icis_deploy.evaluate(device, images=images).to_json() == report.to_json()


def test_the_command_takes_a_uri_and_says_in_one_line_what_is_not_there(bundle, tiny_project, report, capsys):
    assert run(["evaluate", str(bundle), "--images", tiny_project.images.as_uri(), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"]["S"] == report.S
    assert run(["evaluate", str(bundle), "--images", "memory://nowhere/s-{0..3}.tar"]) == 3
    assert "Cannot read memory://nowhere/s-0.tar: there is no such file." in capsys.readouterr().err
    assert run(["evaluate", str(bundle), "--images", "not-there.csv"]) == 2


def test_each_worker_runs_the_model_at_the_same_time_in_openvino(bundle, crowded, monkeypatch):
    pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    opened, whole = [], icis_deploy.Device.open

    def remember(*args, **settings):
        opened.append(whole(*args, **settings))
        return opened[-1]

    monkeypatch.setattr(icis_deploy.Device, "open", remember)
    options = icis_deploy.EvaluateOptions(workers=2)
    in_openvino = icis_deploy.evaluate(bundle, images=crowded, runtime="openvino", options=options)

    assert session_of(opened[0]).num_streams == min(2, usable_cores())  # it makes no more than there are cores
    assert in_openvino.S == icis_deploy.evaluate(bundle, images=crowded).S


def test_what_an_iterator_yields_is_taken_once_and_not_kept(bundle, crowded, tmp_path):
    images, labels = crowded
    alive, most, done = set(), 0, []

    def read():
        nonlocal most
        for number, label in enumerate(labels):
            image = images[number].copy()
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            most = max(most, len(alive))
            yield f"`images`[{number}]", label, image  # as a pair calls it

    options = icis_deploy.EvaluateOptions(workers=2, batch_size=4, checkpoint=tmp_path / "outcomes")
    for _ in range(2):  # the second goes on after all of it
        report = icis_deploy.evaluate(
            bundle, images=read(), options=options, progress=lambda count, total: done.append((count, total))
        )
        assert report.to_json() == icis_deploy.evaluate(bundle, images=crowded).to_json()
    assert most <= 5 * INPUTS_OF_A_PIECE  # whichever their number: a piece in each thread, and what is read ahead
    assert done[-1] == (len(labels), len(labels))


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ImageError, "There is nothing in `images`"),
        ([("a", "nobody knows", "a.png")], ImageError, "nobody knows"),
        (["a.png"], UsageError, r"yields 'str' as number 0; expected \(key, label, value\)"),
        ([("a", 3, "a.png")], UsageError, r"\['str', 'int', 'str'\] as number 0"),
        ([("a", "", "a.png")], UsageError, "as number 0"),
        ([("a", "b", None)], UsageError, "a cannot be 'NoneType'"),
    ],
)
def test_an_iterator_of_something_else_is_refused(bundle, items, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("a.png")
    with pytest.raises(error, match=message):
        icis_deploy.evaluate(bundle, images=iter(items))


def test_an_iterator_that_gives_a_key_twice_is_refused(bundle, crowded):
    images, labels = crowded
    with pytest.raises(IncompatibleError, match="1 images come more than once"):
        icis_deploy.evaluate(bundle, images=iter([("a", labels[0], images[0]), ("a", labels[0], images[0])]))


def test_a_report_names_its_classes(report, tiny_project):
    assert report.class_names == (*tiny_project.seen_names, *tiny_project.unseen_names)
    assert report.S_original == report.seen_loss.before
    assert pytest.approx(report.seen_loss.after) == report.S


def test_arrays_by_class_name_are_inputs_of_that_class(bundle, crowded):
    images, labels = crowded
    by_name = {name: images[[label == name for label in labels]] for name in sorted(set(labels))}
    found = icis_deploy.evaluate(bundle, images=by_name)
    assert found.S == icis_deploy.evaluate(bundle, images=crowded).S
    assert found.num_images == len(images)


def test_a_loss_over_the_budget_is_an_error_that_has_the_report(bundle, crowded):
    with pytest.raises(SeenLossError, match=r"new classes cost \d+\.\d points of seen accuracy") as raised:
        icis_deploy.evaluate(bundle, images=crowded, max_seen_loss=0.02)

    assert raised.value.exit_code == 1
    assert raised.value.report.seen_loss.verdict == "over"
    assert raised.value.found == raised.value.report.seen_loss.loss > 0.02


def test_a_loss_within_the_budget_is_none(bundle, crowded):
    report = icis_deploy.evaluate(bundle, images=crowded, max_seen_loss=1.0)

    assert report.seen_loss.verdict == "within"


def test_a_budget_needs_images_of_seen_classes(bundle, crowded, tiny_project):
    images, _ = crowded
    with pytest.raises(UsageError, match="shows none of the classes that the original model knows"):
        icis_deploy.evaluate(bundle, images=(images[:1], tiny_project.unseen_names[:1]), max_seen_loss=0.02)


def test_unseen_classes_that_nothing_knows_are_refused_and_one_that_was_left_out_is_not(bundle, tiny_project):
    unseen = tiny_project.unseen_names
    misspelled = [name.replace("class", "Class ") for name in unseen]
    with pytest.raises(UsageError, match=rf"such as '{misspelled[0]}'.* Did you mean '{unseen[0]}'"):
        icis_deploy.evaluate(bundle, images=tiny_project.images, unseen=misspelled)
    found = icis_deploy.evaluate(bundle, images=tiny_project.images, unseen=[*unseen, "left out"])
    assert found.num_unseen_images > 0


@pytest.mark.parametrize("budget", [-0.01, 2.0, float("nan")])
def test_a_budget_is_a_fraction(bundle, crowded, budget):
    with pytest.raises(UsageError, match="expected a fraction from 0 to 1"):
        icis_deploy.evaluate(bundle, images=crowded, max_seen_loss=budget)


def test_arrays_of_another_shape_than_the_model_takes_are_refused(bundle, crowded):
    images, labels = crowded
    with pytest.raises(
        ImageError, match=r"shape \(3, 8, 8\) and dtype float32; the bundle's model takes \(3, 16, 16\)"
    ):
        icis_deploy.evaluate(bundle, images=(images[:, :, :8, :8], labels))


def test_the_class_table_has_a_line_for_each_class_with_images(report, tmp_path):
    save_class_table(tmp_path / "classes.csv", report)
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["class"] for row in rows] == list(report.class_names)
    assert {row["kind"] for row in rows[:40]} == {"seen"}
    assert {row["kind"] for row in rows[40:]} == {"unseen"}
    assert {row["accuracy_before"] for row in rows[40:]} == {""}
    assert np.mean([float(row["accuracy"]) for row in rows[:40]]) == pytest.approx(report.S)
    assert all((row["mistake"] != "") == (float(row["accuracy"]) < 1) for row in rows)


def test_a_curve_is_drawn_of_images_of_both_sides(report, bundle, crowded, tmp_path):
    save_curve_plot(tmp_path / "curve.png", report)
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (1050, 690)

    with pytest.raises(ImageError, match=r"There is no curve: 600 images are of seen and 0 of unseen classes\."):
        save_curve_plot(tmp_path / "none.png", icis_deploy.evaluate(bundle, images=crowded))
    assert not (tmp_path / "none.png").exists()


def test_a_misspelt_name_among_many_that_count_as_unseen_is_told_with_what_it_is_like(bundle, tiny_project, capsys):
    first, *others = tiny_project.unseen_names
    misspelt = (f"{first}s", *others, "of no class here")

    with pytest.warns(icis_deploy.ICISDeployWarning) as told:
        icis_deploy.evaluate(bundle, images=tiny_project.images, unseen=misspelt)

    assert [str(one.message) for one in told] == [
        f"{misspelt[0]!r} of the unseen classes is neither in the bundle's head nor in the inputs, and {first!r} "
        f"counts as seen. Correct the name in `unseen` if that one is meant."
    ]


def test_a_plot_under_the_name_of_another_format_is_refused_at_once(bundle, tiny_project, tmp_path, capsys):
    for command in (
        ["evaluate", str(bundle), "--images", str(tiny_project.images), "--curve"],
        ["compare-methods", "none.onnx", "--descriptors", str(tiny_project.descriptors), "--plot"],
    ):
        assert run([*command, str(tmp_path / "plot.txt")]) == 2
        assert "The plot is a PNG" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
