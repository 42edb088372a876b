"""What `export` gives a bundle for photos, and that a device makes of them what `inject` makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import icis_deploy
from icis_deploy.api.generator import GeneratorOptions
from icis_deploy.api.models import head_of, inspect
from icis_deploy.bundle.few_shot import FewShot, load_few_shot
from icis_deploy.bundle.generator_metadata import MADE_LENGTH, MADE_ROW
from icis_deploy.bundle.manifest import FEW_SHOT_NAME, load_manifest
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.errors import ICISDeployWarning, ImageError, IncompatibleError
from icis_deploy.few_shot.refining import levels
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.runtime.device import Device, state_of
from testing.bundles import files_in
from testing.tiny_project import TinyProject
from tests.icis_deploy.api.test_reference import exported, noise_images, write_list

pytestmark = pytest.mark.filterwarnings("ignore::icis_deploy.errors.ICISDeployWarning")


@pytest.fixture(scope="module")
def seen_list(tiny_project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of classes that the model knows, 300 of them."""
    folder = tmp_path_factory.mktemp("seen")
    return write_list(folder / "seen.csv", noise_images(tiny_project, folder / "images", num_images=300))


@pytest.fixture(scope="module")
def generator(tiny_project: TinyProject, seen_list: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator") / "generator.onnx"
    options = GeneratorOptions(
        injection=InjectionOptions(method="ridge", arbiter="off", seen_images=seen_list),
        preprocess=tiny_project.preprocess,
    )
    icis_deploy.export_generator(
        tiny_project.model,
        classes=tiny_project.classes,
        descriptors=tiny_project.descriptors,
        out=out,
        options=options,
    )
    return out


@pytest.fixture
def bundle(tiny_project: TinyProject, seen_list: Path, generator: Path, tmp_path: Path) -> Path:
    return exported(tiny_project, tmp_path / "bundle", seen_images=seen_list, generator=generator, capacity=8)


def few_shot_in(folder: Path) -> FewShot:
    return load_few_shot(folder, load_manifest(folder))


def photo(project: TinyProject, name: str) -> Path:
    return project.images.parent / f"{name}.png"


def test_without_a_generator_rows_are_like_seen_ones(tiny_project: TinyProject, seen_list: Path, tmp_path: Path):
    found = few_shot_in(exported(tiny_project, tmp_path / "bundle", seen_images=seen_list))

    rows = head_of(inspect(tiny_project.model, classes=tiny_project.classes)).rows
    np.testing.assert_allclose(found.context.mean_row, rows.mean(axis=0), rtol=1e-5)
    lengths = np.linalg.norm((rows - rows.mean(axis=0))[:, :-1], axis=1)
    assert found.context.length == pytest.approx(lengths.mean(), rel=1e-5)
    assert (found.context.level, found.max_seen_loss, found.has_generator) == (0.0, 0.02, False)
    assert found.seen_accuracy == pytest.approx(1.0)  # the images are labelled by the model's own answers


def test_with_a_generator_rows_are_like_its_own(tiny_project: TinyProject, bundle: Path, seen_list: Path):
    found = few_shot_in(bundle)

    options = InjectionOptions(method="ridge", arbiter="off", seen_images=seen_list)
    update = icis_deploy.inject(
        tiny_project.model,
        classes=tiny_project.classes,
        descriptors=tiny_project.descriptors,
        preprocess=tiny_project.preprocess,
        options=options,
    )
    mean = found.context.mean_row
    lengths = np.linalg.norm((update.rows - mean)[:, :-1], axis=1)
    assert found.context.length == pytest.approx(lengths.mean(), rel=1e-4)
    assert found.context.level == pytest.approx(
        levels(update.rows, mean, found.context.feature_mean).mean(), rel=1e-3, abs=1e-3
    )
    assert found.has_generator


def test_the_budget_is_the_one_that_was_asked_for(tiny_project: TinyProject, seen_list: Path, tmp_path: Path):
    folder = exported(tiny_project, tmp_path / "bundle", seen_images=seen_list, images=seen_list, max_seen_loss=0.05)
    assert few_shot_in(folder).max_seen_loss == 0.05


def test_a_bundle_without_a_guard_and_a_fused_one_have_nothing_for_photos(tiny_project: TinyProject, tmp_path: Path):
    for name, options in {
        "unguarded": {"max_changed_answers": None},
        "fused": {"head": "fused", "capacity": None},
    }.items():
        assert not (exported(tiny_project, tmp_path / name, **options) / FEW_SHOT_NAME).exists()


@pytest.mark.parametrize("with_descriptors", [False, True])
def test_a_device_makes_of_photos_what_inject_makes(
    tiny_project: TinyProject, seen_list: Path, generator: Path, tmp_path: Path, *, with_descriptors: bool
):
    # Without labels a predicted row counts as one photo in `inject` as well.
    unlabelled = tmp_path / "unlabelled.csv"
    unlabelled.write_text("\n".join(line.split(",")[0] for line in seen_list.read_text().splitlines()) + "\n")
    bundle = exported(tiny_project, tmp_path / "bundle", seen_images=unlabelled, generator=generator, capacity=8)
    names = tiny_project.unseen_names
    described = load_descriptors(tiny_project.descriptors)
    device = Device.open(bundle)
    for name in names:
        descriptor = described.select((name,)).values[0] if with_descriptors else None
        device.teach(name, descriptor, images=[photo(tiny_project, name)])
    photos = write_list(tmp_path / "photos.csv", [(photo(tiny_project, name), name) for name in names])
    options = InjectionOptions(method="ridge", arbiter="off", seen_images=unlabelled, photos=photos)
    update = icis_deploy.inject(
        tiny_project.model,
        classes=tiny_project.classes,
        descriptors=tiny_project.descriptors if with_descriptors else None,
        unseen=names,
        preprocess=tiny_project.preprocess,
        options=options,
    )
    table = state_of(device).table
    found = np.stack([table.rows()[table.filled_names.index(name)] for name in names])
    mean = few_shot_in(bundle).context.mean_row
    for one, other in zip(found - mean, update.rows - mean, strict=True):
        cosine = one[:-1] @ other[:-1] / np.linalg.norm(one[:-1]) / np.linalg.norm(other[:-1])
        assert cosine > 0.99  # up to the mean feature, which is of as many images as the reference was chosen from
    answers = [answer.class_names[0] for answer in device.predict([photo(tiny_project, name) for name in names], top=1)]
    assert set(answers) <= {*names, *tiny_project.seen_names}


def test_an_unreadable_photo_is_named_and_may_be_left_out(tiny_project: TinyProject, bundle: Path, tmp_path: Path):
    broken, absent = tmp_path / "broken.jpg", tmp_path / "absent.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not much of a photo")
    good = [photo(tiny_project, name) for name in tiny_project.unseen_names[:2]]
    device, before = Device.open(bundle), files_in(bundle)
    for wrong in (broken, absent):
        with pytest.raises(ImageError, match=wrong.name):
            device.teach("okapi", images=[good[0], wrong, good[1]])
        with pytest.raises(ImageError, match=f"None of the 1 photos can be read.*{wrong.name}"):
            device.teach("okapi", images=[wrong], skip_unreadable=True)
    assert files_in(bundle) == before

    with pytest.warns(ICISDeployWarning, match="broken.jpg"):
        entry = device.teach("okapi", images=[good[0], broken, good[1]], skip_unreadable=True)
    assert len(entry.photos_sha256) == 2


def test_a_generator_of_an_earlier_release_still_teaches_by_descriptors(
    tiny_project: TinyProject, seen_list: Path, generator: Path, tmp_path: Path
):
    model = onnx.load(generator)
    kept = [output for output in model.graph.output if output.name not in {MADE_ROW, MADE_LENGTH}]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.graph.node.remove(next(node for node in model.graph.node if MADE_ROW in node.output))
    model.graph.node.remove(next(node for node in model.graph.node if MADE_LENGTH in node.output))
    onnx.save(model, tmp_path / "old.onnx")
    folder = exported(tiny_project, tmp_path / "bundle", seen_images=seen_list, generator=tmp_path / "old.onnx")
    name = tiny_project.unseen_names[0]
    descriptor = load_descriptors(tiny_project.descriptors).select((name,)).values[0]
    device = Device.open(folder)

    with pytest.raises(IncompatibleError, match="written by an earlier release"):
        device.teach(name, descriptor, images=[photo(tiny_project, name)])
    assert device.teach(name, descriptor).action == "teach"
    assert device.teach("okapi", images=[photo(tiny_project, tiny_project.unseen_names[1])]).action == "teach"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_bundles_of_other_precisions_are_taught_by_their_own_features(
    precision: str, tiny_project: TinyProject, seen_list: Path, tmp_path: Path
):
    form = icis_deploy.ModelForm(precision=precision, calibration_images=seen_list if precision == "int8" else None)
    folder = exported(tiny_project, tmp_path / "bundle", seen_images=seen_list, form=form)
    device = Device.open(folder)
    name = tiny_project.unseen_names[0]
    features = device.embed([photo(tiny_project, name)])
    assert features.dtype == np.float32
    device.teach(name, images=[photo(tiny_project, name)])
    context = few_shot_in(folder).context
    table = state_of(device).table
    weights = (table.rows()[0] - context.mean_row)[:-1]
    direction = features[0] - context.feature_mean
    assert weights @ direction / np.linalg.norm(weights) / np.linalg.norm(direction) == pytest.approx(1.0, abs=1e-5)


def test_another_runtime_gives_the_same_features_and_is_taught_by_them(
    tiny_project: TinyProject, seen_list: Path, tmp_path: Path
):
    pytest.importorskip("openvino")
    folder = exported(tiny_project, tmp_path / "bundle", seen_images=seen_list, targets=("onnx", "openvino"))
    name = tiny_project.unseen_names[0]
    shown = [photo(tiny_project, name)]
    device = Device.open(folder, runtime="openvino")
    np.testing.assert_allclose(device.embed(shown), Device.open(folder).embed(shown), rtol=1e-2, atol=1e-3)
    assert device.teach(name, images=shown).photos_sha256


def test_compacting_keeps_what_photos_need_and_the_offset_of_taught_classes(
    tiny_project: TinyProject, bundle: Path, tmp_path: Path
):
    first, second = tiny_project.unseen_names[:2]
    device = Device.open(bundle)
    device.teach(first, images=[photo(tiny_project, first)])
    icis_deploy.compact(bundle, out=tmp_path / "compacted")
    compacted = Device.open(tmp_path / "compacted")
    compacted.teach(second, images=[photo(tiny_project, second)])
    device.teach(second, images=[photo(tiny_project, second)])
    for name in (first, second):
        rows = [
            table.rows()[table.filled_names.index(name)]
            for table in (state_of(device).table, state_of(compacted).table)
        ]
        np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5, atol=1e-5)
