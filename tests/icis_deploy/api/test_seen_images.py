"""The owner's images of seen classes: every form they come in, and what is refused."""

from __future__ import annotations

import csv
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.api.inject import inject, train_injector
from icis_deploy.api.models import OpenedModel, head_of, inspect
from icis_deploy.api.seen_images import labelled_seen_images, read_seen_images
from icis_deploy.errors import ICISDeployWarning, ImageError, IncompatibleError, UsageError
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.arbiter.seen_images import SeenImages
from icis_deploy.injection.options import InjectionOptions
from testing.tiny_project import TinyProject


@pytest.fixture(scope="module")
def opened(tiny_project: TinyProject) -> OpenedModel:
    return inspect(tiny_project.model, classes=tiny_project.classes)


@pytest.fixture(scope="module")
def right_answers(tiny_project: TinyProject, opened: OpenedModel, tmp_path_factory) -> Path:
    """A list of images of seen classes, labelled with what the model answers, but for a few."""
    folder = tmp_path_factory.mktemp("owner")
    names = [path.name for path in sorted(tiny_project.images.parent.glob("class*.png"))]
    found = load(tiny_project, opened, write_list(tiny_project, folder, dict.fromkeys(names)))
    labels = {name: tiny_project.seen_names[index] for name, index in zip(names, found.labels, strict=True)}
    return write_list(tiny_project, folder, labels)


def write_list(project: TinyProject, folder: Path, labels: dict[str, str | None]) -> Path:
    """Write an image list of copies; without labels it has the column `file` alone."""
    path = folder / ("labelled.csv" if any(labels.values()) else "files.csv")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class"] if any(labels.values()) else ["file"])
        for name, label in labels.items():
            shutil.copy(project.images.parent / name, folder / name)
            writer.writerow([name] if label is None else [name, label])
    return path


def load(project: TinyProject, opened: OpenedModel, given) -> SeenImages:
    read = read_seen_images(opened, InjectionOptions(seen_images=given), load_preprocessing(project.preprocess))
    assert read is not None
    return labelled_seen_images(read, head_of(opened), new_classes=project.unseen_names)


def test_lists_folders_and_features_give_the_same_images(tiny_project, opened, right_answers: Path, tmp_path: Path):
    listed = load(tiny_project, opened, right_answers)
    assert listed.are_labelled
    assert listed.is_right.all()
    with right_answers.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        (tmp_path / "folders" / row["class"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(right_answers.parent / row["file"], tmp_path / "folders" / row["class"] / row["file"])
    folders = load(tiny_project, opened, tmp_path / "folders")
    assert sorted(folders.labels) == sorted(listed.labels)
    names = [tiny_project.seen_names[index] for index in listed.labels]
    np.savez(tmp_path / "features.npz", features=listed.features, labels=np.array(names))
    for given in (tmp_path / "features.npz", (listed.features, names)):
        np.testing.assert_array_equal(load(tiny_project, opened, given).labels, listed.labels)


def test_images_without_classes_are_unlabelled(tiny_project, opened, right_answers: Path, tmp_path: Path):
    listed = load(tiny_project, opened, right_answers)
    np.savez(tmp_path / "features.npz", features=listed.features)
    shutil.copytree(right_answers.parent, tmp_path / "flat", ignore=shutil.ignore_patterns("*.csv"))
    forms = (right_answers.parent / "files.csv", tmp_path / "flat", tmp_path / "features.npz", (listed.features, None))
    for given in forms:
        found = load(tiny_project, opened, given)
        assert not found.are_labelled
        assert found.num_images == listed.num_images


def test_an_image_that_is_there_three_times_counts_once_and_that_is_said(tiny_project, opened, right_answers: Path):
    listed = load(tiny_project, opened, right_answers)
    repeated = right_answers.with_name("repeated.csv")
    header, *rows = right_answers.read_text().splitlines()
    repeated.write_text("\n".join([header, *rows * 3]))
    found = read_seen_images(
        opened, InjectionOptions(seen_images=repeated), load_preprocessing(tiny_project.preprocess)
    )
    assert found is not None
    np.testing.assert_array_equal(found.features, listed.features)
    assert found.labels == tuple(tiny_project.seen_names[index] for index in listed.labels)
    assert len(set(found.digests)) == len(found.digests) == len(rows)
    assert found.problems == (
        f"{2 * len(rows)} of {3 * len(rows)} images of {repeated} are there already, and count once.",
    )


def test_an_image_under_two_classes_is_named(tiny_project, opened, right_answers: Path):
    twice = right_answers.with_name("twice.csv")
    lines = right_answers.read_text().splitlines()
    name, label = lines[1].rsplit(",", 1)
    other = next(each for each in tiny_project.seen_names if each != label)
    twice.write_text("\n".join([*lines, f"{name},{other}"]))
    found = read_seen_images(opened, InjectionOptions(seen_images=twice), load_preprocessing(tiny_project.preprocess))
    assert found is not None
    assert len(found.digests) == len(lines)
    assert found.problems == (
        f"Images that {twice} has under more than one class: 1, such as one under '{label}', '{other}': only one of "
        f"them can be right.",
    )


def test_inputs_that_are_no_images_may_be_equal(tiny_project, opened):
    found = load(tiny_project, opened, (np.ones((3, 24), np.float32), None))
    assert found.num_images == 3


def test_images_of_new_classes_are_refused_by_name(tiny_project, opened):
    with pytest.raises(ImageError, match=r"show 'class40', 'class41'.* which are among the new classes"):
        load(tiny_project, opened, tiny_project.images)


def test_labels_that_the_model_does_not_know_are_refused_by_name(tiny_project, opened):
    features = np.zeros((2, 24), np.float32)
    with pytest.raises(ImageError, match="show 'okapi', which the model does not know"):
        load(tiny_project, opened, (features, ["class01", "okapi"]))


def test_images_that_the_model_is_never_right_on_are_refused(tiny_project, opened, right_answers: Path):
    listed = load(tiny_project, opened, right_answers)
    wrong = [tiny_project.seen_names[(index + 1) % 40] for index in listed.labels]
    with pytest.raises(IncompatibleError, match="right on none of the 46 images"):
        load(tiny_project, opened, (listed.features, wrong))


def test_features_of_another_width_are_refused(tiny_project, opened):
    with pytest.raises(IncompatibleError, match="7 wide; the head takes 24"):
        load(tiny_project, opened, (np.zeros((2, 7), np.float32), ["class01", "class02"]))


def test_images_need_to_be_prepared(tiny_project, opened, right_answers: Path):
    with pytest.raises(UsageError, match="known how they are prepared"):
        read_seen_images(opened, InjectionOptions(seen_images=right_answers), None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "There is no image in the folder"),
        (lambda folder: folder / "absent.csv", "absent.csv"),
        (lambda folder: np.savez(folder / "a.npz", rows=np.zeros(3)) or folder / "a.npz", "holds no array `features`"),
        (
            lambda folder: (
                np.savez(folder / "a.npz", features=np.zeros((3, 24), np.float32), labels=["a"]) or folder / "a.npz"
            ),
            "3 features and 1 labels in",
        ),
        (
            lambda folder: np.save(folder / "a.npy", np.zeros((3, 24))) or folder / "a.npy",
            r"a\.npy\[0\] has shape \(24,\)",
        ),
        (lambda folder: (folder / "a.npz").write_bytes(b"no zip") and folder / "a.npz", "Cannot read the features"),
        (
            lambda folder: (folder / "a.csv").write_text("file\nb.png\n") and folder / "a.csv",
            "names 'b.png' in line 2, which is not at",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tiny_project, opened, tmp_path: Path, make, message: str):
    with pytest.raises(ImageError, match=message):
        load(tiny_project, opened, make(tmp_path))


def test_inject_sets_the_budget_with_images_and_warns_once(tiny_project, opened, right_answers: Path):
    options = InjectionOptions(method="ridge", max_seen_loss=0.1, seen_images=right_answers)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        update = inject(
            opened, descriptors=tiny_project.descriptors, preprocess=tiny_project.preprocess, options=options
        )
    told = [str(one.message) for one in caught if issubclass(one.category, ICISDeployWarning)]
    assert told == list(update.warnings)
    assert all(one.filename == __file__ for one in caught if issubclass(one.category, ICISDeployWarning))
    assert len(set(told)) == len(told) > 0
    assert update.provenance["budget"]["ground"] == "images"


def test_an_injector_warns_python_users_too(tiny_project, opened):
    with pytest.warns(ICISDeployWarning, match="no loss of seen accuracy can be promised"):
        injection = train_injector(
            opened,
            descriptors=tiny_project.descriptors,
            preprocess=tiny_project.preprocess,
            options=InjectionOptions(method="ridge"),
        )
    assert injection.promise.ground == "none"


def test_the_warning_is_public():
    assert icis_deploy.ICISDeployWarning is ICISDeployWarning
