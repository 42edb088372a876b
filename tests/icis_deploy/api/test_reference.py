"""Which images a device is guarded with."""

from __future__ import annotations

import csv
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import icis_deploy
from icis_deploy.api.models import head_of, inspect
from icis_deploy.api.reference import MAX_REFERENCE_IMAGES, MIN_GATE_IMAGES
from icis_deploy.api.seen_images import backbone_features_of
from icis_deploy.bundle.manifest import REFERENCE_NAME, load_manifest
from icis_deploy.bundle.reference import MAX_REFERENCE_BYTES, Reference, load_reference
from icis_deploy.errors import ImageError, IncompatibleError, UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.images.sources import ListedValues
from testing.tiny_project import NUM_SEEN, TinyProject


def exported(project: TinyProject, out: Path, **options: object) -> Path:
    icis_deploy.export(
        project.model,
        classes=project.classes,
        out=out,
        options=icis_deploy.ExportOptions(
            **{"head": "updatable", "capacity": 4, "preprocess": project.preprocess, **options}
        ),
    )
    return out


def reference_in(folder: Path) -> Reference:
    return load_reference(folder, load_manifest(folder))


def noise_images(project: TinyProject, folder: Path, *, num_images: int) -> list[tuple[Path, str]]:
    """Write images of noise with the classes that the model answers with."""
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(1)
    paths = [folder / f"{index}.png" for index in range(num_images)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    plain = exported(project, folder.with_name("plain"), max_changed_answers=None)
    answers = icis_deploy.Device.open(plain).predict(paths, top=1)
    return [(path, answer.class_names[0]) for path, answer in zip(paths, answers, strict=True)]


def write_list(path: Path, rows: list[tuple[Path, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class"])
        writer.writerows((str(image), name) for image, name in rows)
    return path


def check_statistics(project: TinyProject, reference: Reference) -> None:
    """The statistics are those of the original head on the rounded features."""
    head = head_of(inspect(project.model, classes=project.classes))
    logits = reference.features @ head.weight.T + head.bias
    expected = seen_statistics(reference.features, logits.astype(np.float32), deviation_lengths(head.rows))
    np.testing.assert_allclose(reference.statistics, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(reference.answers, logits.argmax(axis=1))
    np.testing.assert_array_equal(reference.features, reference.features.astype(np.float16))
    assert reference.sketches is not None
    np.testing.assert_array_equal(reference.sketches, head.weight.astype(np.float16))


def test_without_images_features_are_drawn_from_the_head(tiny_project: TinyProject, tmp_path: Path):
    folder = exported(tiny_project, tmp_path / "bundle")
    reference = reference_in(folder)

    check_statistics(tiny_project, reference)
    assert MIN_GATE_IMAGES < reference.num_reference <= MAX_REFERENCE_IMAGES
    assert len(set(reference.answers.tolist())) > NUM_SEEN // 2
    assert load_manifest(folder).max_changed_answers == 0.05
    assert load_manifest(folder).reference_source == "pseudo-features"
    assert (folder / REFERENCE_NAME).stat().st_size <= MAX_REFERENCE_BYTES
    again = exported(tiny_project, tmp_path / "again")
    assert (again / REFERENCE_NAME).read_bytes() == (folder / REFERENCE_NAME).read_bytes()


def test_given_images_are_kept_where_the_model_is_right_on_them(tiny_project: TinyProject, tmp_path: Path):
    rows = noise_images(tiny_project, tmp_path / "images", num_images=30)
    wrong = [(path, "class00" if name != "class00" else "class01") for path, name in rows[:5]]
    listed = write_list(tmp_path / "seen.csv", [*wrong, *rows[5:]])

    reference = reference_in(exported(tiny_project, tmp_path / "bundle", seen_images=listed))

    assert load_manifest(tmp_path / "bundle").reference_source == "seen images"
    check_statistics(tiny_project, reference)
    names = [tiny_project.seen_names[answer] for answer in reference.answers]
    assert sorted(names) == sorted(name for _, name in rows[5:])


def test_a_folder_without_labels_is_kept_whole_and_one_of_classes_is_checked(tiny_project: TinyProject, tmp_path: Path):
    rows = noise_images(tiny_project, tmp_path / "images", num_images=25)
    flat = reference_in(exported(tiny_project, tmp_path / "flat", seen_images=tmp_path / "images"))
    assert flat.num_reference == 25

    for path, name in rows:
        (tmp_path / "by class" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "by class" / name)
    by_class = reference_in(exported(tiny_project, tmp_path / "classes", seen_images=tmp_path / "by class"))
    assert sorted(by_class.answers) == sorted(flat.answers)

    (tmp_path / "by class" / "okapi").mkdir()
    shutil.copy(rows[0][0], tmp_path / "by class" / "okapi")
    with pytest.raises(IncompatibleError, match="has images of 'okapi', which the model does not know"):
        exported(tiny_project, tmp_path / "refused", seen_images=tmp_path / "by class")
    assert not (tmp_path / "refused").exists()


def test_features_of_images_need_no_preprocessing_and_give_what_images_do(tiny_project: TinyProject, tmp_path: Path):
    rows = noise_images(tiny_project, tmp_path / "images", num_images=25)
    paths, names = tuple(path for path, _ in rows), [name for _, name in rows]
    opened = icis_deploy.inspect(tiny_project.model, classes=tiny_project.classes)
    features = backbone_features_of(ListedValues(values=paths), opened, load_preprocessing(tiny_project.preprocess))
    np.savez(tmp_path / "features.npz", features=features, labels=np.array(names))
    shown = reference_in(exported(tiny_project, tmp_path / "bundle", seen_images=tmp_path / "images"))

    forms = (tmp_path / "features.npz", (features, names), (features, None))
    for number, given in enumerate(forms):
        out = exported(tiny_project, tmp_path / str(number), seen_images=given, preprocess=None)
        assert load_manifest(out).reference_source == "seen images"
        found = reference_in(out)
        assert sorted(map(bytes, found.features)) == sorted(map(bytes, shown.features))

    wrong = [tiny_project.seen_names[tiny_project.seen_names.index(name) - 1] for name in names[:5]]
    given = (features, [*wrong, *names[5:]])
    assert (
        reference_in(exported(tiny_project, tmp_path / "wrong", seen_images=given, preprocess=None)).num_reference == 20
    )


def test_features_that_do_not_fit_are_refused(tiny_project: TinyProject, tmp_path: Path):
    for given, error, message in (
        ((np.ones((30, 7), np.float32), None), IncompatibleError, "7 wide; the head takes 24"),
        ((np.ones((30, 24), np.float32), ["okapi"] * 30), IncompatibleError, "has images of 'okapi'"),
        ((np.ones((30, 24), np.float32), ["class00"]), ImageError, "30 features and 1 labels"),
    ):
        with pytest.raises(error, match=message):
            exported(tiny_project, tmp_path / "bundle", seen_images=given)
        assert not (tmp_path / "bundle").exists()


def test_arrays_are_refused_where_only_images_can_be_run(tiny_project: TinyProject, tmp_path: Path):
    np.savez(tmp_path / "features.npz", features=np.ones((30, 24), np.float32))
    with pytest.raises(ImageError, match=r"holds \['features'\]; expected `inputs`"):
        exported(tiny_project, tmp_path / "bundle", images=tmp_path / "features.npz")


def test_images_of_the_gate_are_used_if_there_are_enough_of_known_classes(tiny_project: TinyProject, tmp_path: Path):
    rows = noise_images(tiny_project, tmp_path / "images", num_images=MIN_GATE_IMAGES)
    unseen = [(path, tiny_project.unseen_names[0]) for path, _ in rows[:7]]

    enough = write_list(tmp_path / "enough.csv", [*unseen, *rows])
    assert reference_in(exported(tiny_project, tmp_path / "a", images=enough)).num_reference == MIN_GATE_IMAGES
    assert load_manifest(tmp_path / "a").reference_source == "gate images"
    few = write_list(tmp_path / "few.csv", [*unseen, *rows[1:]])
    assert reference_in(exported(tiny_project, tmp_path / "b", images=few)).num_reference > MIN_GATE_IMAGES


def hostile_update(project: TinyProject, *, bias: float) -> ClassUpdate:
    """Return an update of one class, whose row answers everything or nothing."""
    head = head_of(inspect(project.model, classes=project.classes))
    row = np.zeros((1, head.feature_dim + 1), np.float32)
    row[0, -1] = bias
    return ClassUpdate(base_fingerprint=head.fingerprint, version=1, rows=row, added=("okapi",))


def test_an_export_says_that_devices_would_refuse_its_classes_and_what_they_would_take(
    tiny_project: TinyProject, tmp_path: Path
):
    def export_with(bias: float, name: str, **options: object) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            icis_deploy.export(
                tiny_project.model,
                classes=tiny_project.classes,
                out=tmp_path / name,
                updates=[hostile_update(tiny_project, bias=bias)],
                options=icis_deploy.ExportOptions(
                    head="updatable", capacity=4, preprocess=tiny_project.preprocess, **options
                ),
            )
        return [str(one.message) for one in caught if issubclass(one.category, icis_deploy.ICISDeployWarning)]

    (message,) = export_with(1e4, "all")
    number = reference_in(tmp_path / "all").num_reference
    assert f"they change {number} of {number} answers on features that stand in for images" in message
    assert "(100.0 %), and one update may change 5.0 %" in message
    assert "give images of classes that the model knows with `seen_images`, or allow 100.0 %" in message
    assert export_with(-1e4, "none") == []
    assert export_with(1e4, "allowed", max_changed_answers=1.0) == []
    assert export_with(1e4, "unguarded", max_changed_answers=None) == []


@pytest.mark.parametrize("num_images", [0, 19])
def test_too_few_images_to_tell_such_a_share_are_refused(num_images: int, tiny_project: TinyProject, tmp_path: Path):
    rows = noise_images(tiny_project, tmp_path / "images", num_images=num_images + 1)
    wrong = [(rows[0][0], "class00" if rows[0][1] != "class00" else "class01")]
    listed = write_list(tmp_path / "seen.csv", [*wrong, *rows[1:]])

    with pytest.raises(UsageError, match=f"The model is right on {num_images} of the images .* takes 20 or more"):
        exported(tiny_project, tmp_path / "bundle", seen_images=listed)


def test_a_folder_without_images_is_refused(tiny_project: TinyProject, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="There is no image in the folder"):
        exported(tiny_project, tmp_path / "bundle", seen_images=tmp_path / "empty")


def test_images_need_preprocessing(tiny_project: TinyProject, tmp_path: Path):
    with pytest.raises(UsageError, match="known how they are prepared"):
        exported(tiny_project, tmp_path / "bundle", preprocess=None, seen_images=tiny_project.images.parent)


def test_a_fused_head_and_a_bundle_without_a_guard_have_no_reference(tiny_project: TinyProject, tmp_path: Path):
    for name, options in (("fused", {"head": "fused", "capacity": None}), ("none", {"max_changed_answers": None})):
        folder = exported(tiny_project, tmp_path / name, **options)
        assert not (folder / REFERENCE_NAME).exists()
        assert load_manifest(folder).max_changed_answers is None
        with pytest.raises(UsageError, match="this one takes none or has no guard"):
            exported(tiny_project, tmp_path / "refused", seen_images=tiny_project.images, **options)


@pytest.mark.parametrize("share", [-0.1, 5])
def test_a_share_is_one_of_all_answers(share: float):
    with pytest.raises(UsageError, match="is no share of the answers"):
        icis_deploy.ExportOptions(head="updatable", capacity=4, max_changed_answers=share)
