"""A few photos of new classes: what they do to rows, what is said of them, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import icis_deploy
from icis_deploy.api.inject import inject, train_injector
from icis_deploy.api.models import OpenedModel, head_of, inspect
from icis_deploy.cli.main import run
from icis_deploy.errors import DescriptorError, ICISDeployWarning, ImageError, UsageError
from icis_deploy.injection.options import InjectionOptions
from testing.tiny_project import TinyProject

pytestmark = pytest.mark.filterwarnings("ignore::icis_deploy.errors.ICISDeployWarning")


@pytest.fixture(scope="module")
def opened(tiny_project: TinyProject) -> OpenedModel:
    return inspect(tiny_project.model, classes=tiny_project.classes)


def features(opened: OpenedModel, *, seed: int, count: int) -> np.ndarray:
    width = head_of(opened).feature_dim
    return np.random.default_rng(seed).normal(1.0, 1.0, size=(count, width)).astype(np.float32)


def owner(opened: OpenedModel) -> tuple[np.ndarray, list[str]]:
    """Features that the head answers with each of its classes, labelled so."""
    found = features(opened, seed=0, count=200)
    head = head_of(opened)
    return found, [head.class_names[one] for one in head.logits(found).argmax(axis=1)]


def injected(project: TinyProject, opened: OpenedModel, photos, *, descriptors="given", unseen=None, **options):
    chosen = InjectionOptions(method="ridge", photos=photos, seen_images=owner(opened), arbiter="off", **options)
    given = project.descriptors if descriptors == "given" else None
    return train_injector(opened, descriptors=given, unseen=unseen, options=chosen, preprocess=project.preprocess)


def test_photos_move_rows_of_their_classes_and_shift_the_others_alike(tiny_project, opened):
    name = tiny_project.unseen_names[0]
    without = injected(tiny_project, opened, None)
    found = injected(tiny_project, opened, (features(opened, seed=1, count=2), [name, name]))
    assert found.class_names == without.class_names
    moved = found.rows - without.rows
    assert np.abs(moved[0, :-1]).max() > 1e-3
    assert not moved[1:, :-1].any()
    np.testing.assert_allclose(moved[1:, -1], moved[1, -1], atol=1e-4)
    assert found.photos is not None
    assert found.photos["num_photos"] == {name: 2}
    assert len(found.photos["sha256"][name]) == 2
    assert found.provenance["photos"]["without_descriptor"] == []


def test_without_photos_nothing_is_said_of_them(tiny_project, opened):
    assert "photos" not in injected(tiny_project, opened, None).provenance


def test_the_budget_is_kept_on_the_images_that_set_it(tiny_project, opened):
    found = injected(tiny_project, opened, (features(opened, seed=1, count=1), [tiny_project.unseen_names[0]]))
    shown, _ = owner(opened)
    seen = head_of(opened).logits(shown).max(axis=1)
    new = (shown @ found.rows[:, :-1].T + found.rows[:, -1]).max(axis=1)
    assert np.mean(new > seen) <= 0.02 * 2


def test_a_class_without_a_descriptor_is_made_from_its_photos(tiny_project, opened):
    found = injected(tiny_project, opened, (features(opened, seed=1, count=1), ["okapi"]))
    assert found.class_names[-1] == "okapi"
    assert found.photos is not None
    assert found.photos["without_descriptor"] == ["okapi"]
    mean = head_of(opened).rows.mean(axis=0)
    lengths = np.linalg.norm((found.rows - mean)[:, :-1], axis=1)
    assert lengths[-1] == pytest.approx(lengths[:-1].mean(), rel=1e-3)


def test_descriptors_may_be_left_out_where_all_classes_have_photos(tiny_project, opened):
    shown = (features(opened, seed=1, count=3), ["okapi", "okapi", "tapir"])
    found = injected(tiny_project, opened, shown, descriptors="none")
    assert found.class_names == ("okapi", "tapir")
    assert found.injector is None
    assert found.estimate is None
    with pytest.raises(DescriptorError, match="neither a descriptor nor a photo of 'gnu'"):
        injected(tiny_project, opened, shown, descriptors="none", unseen=["okapi", "tapir", "gnu"])


def test_an_update_with_photos_goes_through_a_file(tiny_project, opened, tmp_path):
    options = InjectionOptions(
        photos=(features(opened, seed=1, count=1), ["okapi"]), seen_images=owner(opened), method="ridge"
    )
    update = inject(opened, options=options)
    icis_deploy.save_update(update, tmp_path / "new.icis")
    loaded = icis_deploy.load_update(tmp_path / "new.icis")
    assert loaded.provenance["photos"]["num_photos"] == {"okapi": 1}


def test_photos_alone_promise_nothing_without_images_of_seen_classes(tiny_project, opened):
    options = InjectionOptions(photos=(features(opened, seed=1, count=1), ["okapi"]), method="ridge")
    with pytest.warns(ICISDeployWarning, match="no loss of seen accuracy is promised"):
        update = inject(opened, options=options, preprocess=tiny_project.preprocess)
    assert update.provenance["budget"]["ground"] == "none"


def test_photos_of_known_classes_are_refused_by_name(tiny_project, opened):
    known = tiny_project.seen_names[3]
    with pytest.raises(ImageError, match=f"show '{known}', which the model knows already"):
        injected(tiny_project, opened, (features(opened, seed=1, count=1), [known]))


def test_photos_of_classes_that_nobody_asked_for_are_refused(tiny_project, opened):
    asked = tiny_project.unseen_names[:1]
    with pytest.raises(ImageError, match="show 'okapi', which are not among the classes to inject"):
        injected(tiny_project, opened, (features(opened, seed=1, count=1), ["okapi"]), unseen=asked)


def test_a_photo_is_not_also_an_image_of_a_seen_class(tiny_project, opened):
    shown, _ = owner(opened)
    with pytest.raises(ImageError, match=r"1 of the photos .* also among the images of seen"):
        injected(tiny_project, opened, (shown[:1], ["okapi"]))


def test_photos_without_classes_are_refused(tiny_project, opened):
    with pytest.raises(ImageError, match="Nothing says which new classes"):
        injected(tiny_project, opened, (features(opened, seed=1, count=1), None))


def test_a_balance_and_neither_source_are_refused(tiny_project, opened):
    shown = (features(opened, seed=1, count=1), ["okapi"])
    with pytest.raises(UsageError, match="set anew for a budget"):
        injected(tiny_project, opened, shown, balance=0.5)
    with pytest.raises(UsageError, match="Nothing says what the new classes are"):
        inject(opened)


def test_an_unreadable_photo_is_named_and_left_out_on_request(tiny_project, opened, tmp_path):
    folder = tmp_path / "photos" / "okapi"
    folder.mkdir(parents=True)
    source = sorted(tiny_project.images.parent.glob("class*.png"))[0]
    (folder / "good.png").write_bytes(source.read_bytes())
    (folder / "torn.png").write_bytes(source.read_bytes()[:40])
    with pytest.raises(ImageError, match=r"torn\.png"):
        injected(tiny_project, opened, tmp_path / "photos")
    found = injected(tiny_project, opened, tmp_path / "photos", skip_unreadable=True)
    assert found.photos is not None
    assert found.photos["num_photos"] == {"okapi": 1}
    assert any("1 of 2 images" in one and "torn.png" in one for one in found.warnings)


def saved(path: Path, mode: str, *, brightest: int = 255) -> None:
    """Write one picture in a mode, the same but for what the mode cannot hold."""
    grey = np.linspace(0, brightest, 16 * 16).reshape(16, 16).astype(np.uint8)
    image = Image.fromarray(np.stack([grey] * 3, axis=-1))
    if mode == "16 bits":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(path)


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", "png"), ("LA", "png"), ("RGBA", "png"), ("16 bits", "png"), ("CMYK", "tif")]
)
def test_photos_with_other_channels_are_the_same_photos(tiny_project, opened, tmp_path, mode, ending):
    rows = []
    for name, written in ((f"odd.{ending}", mode), ("plain.png", "RGB")):
        (tmp_path / f"{name}-photos" / "okapi").mkdir(parents=True)
        saved(tmp_path / f"{name}-photos" / "okapi" / name, written)
        rows.append(injected(tiny_project, opened, tmp_path / f"{name}-photos").rows[-1])

    np.testing.assert_allclose(rows[0], rows[1], atol=0.02 * np.abs(rows[1]).max())


def five_channels(path: Path) -> None:
    """Write a TIFF of five channels: that of a picture of three, with the number of samples changed."""
    saved(path, "RGB")
    data = bytearray(path.read_bytes())
    entry = data.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
    data[entry + 8] = 5
    path.write_bytes(bytes(data))


def array_of_two_channels(path: Path) -> None:
    with path.open("wb") as file:  # by its name, np.save would add `.npy`
        np.save(file, np.zeros((16, 16, 2), np.uint8))


def saved_float(path: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.float32)).save(path)


@pytest.mark.parametrize("write", [five_channels, array_of_two_channels, saved_float])
def test_photos_whose_channels_mean_nothing_are_named_and_left_out_on_request(tiny_project, opened, tmp_path, write):
    folder = tmp_path / "photos" / "okapi"
    folder.mkdir(parents=True)
    for index in range(3):
        saved(folder / f"{index}.png", "RGB", brightest=200 + index)
    write(folder / "odd.tif")

    with pytest.raises(ImageError, match=r"odd\.tif") as caught:
        injected(tiny_project, opened, tmp_path / "photos")

    assert str(caught.value.where).endswith("odd.tif")
    found = injected(tiny_project, opened, tmp_path / "photos", skip_unreadable=True)
    assert found.photos is not None
    assert found.photos["num_photos"] == {"okapi": 3}
    assert any("1 of 4 images" in one and "odd.tif" in one for one in found.warnings)


def test_the_command_names_one_unreadable_photo_among_many_and_goes_on_when_told(tiny_project, tmp_path, capsys):
    photos = tmp_path / "photos.csv"
    lines = ["file,class"]
    for index, name in enumerate([*tiny_project.unseen_names] * 2):
        saved(tmp_path / f"{index}.png", "RGB", brightest=200 + index)
        lines.append(f"{index}.png,{name}")
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    photos.write_text("\n".join([*lines, f"torn.png,{tiny_project.unseen_names[0]}"]))
    out = tmp_path / "new.icis"
    arguments = [
        "inject", str(tiny_project.model), "--classes", str(tiny_project.classes), "--method", "ridge",
        "--descriptors", str(tiny_project.descriptors), "--preprocess", str(tiny_project.preprocess),
        "--photos", str(photos), "--out", str(out),
    ]  # fmt: skip

    assert run(arguments) == 3
    error = capsys.readouterr().err
    assert "torn.png" in error
    assert "--skip-unreadable" in error
    assert not out.exists()

    assert run([*arguments, "--skip-unreadable"]) == 0
    assert "1 of 13 images" in capsys.readouterr().out
    assert set(icis_deploy.load_update(out).provenance["photos"]["num_photos"].values()) == {2}


def test_the_command_refuses_photos_of_known_classes(tiny_project, tmp_path, capsys):
    known = tiny_project.seen_names[3]
    (tmp_path / "photos" / known).mkdir(parents=True)
    saved(tmp_path / "photos" / known / "0.png", "RGB")
    out = tmp_path / "new.icis"

    code = run([
        "inject", str(tiny_project.model), "--classes", str(tiny_project.classes), "--method", "ridge",
        "--descriptors", str(tiny_project.descriptors), "--preprocess", str(tiny_project.preprocess),
        "--photos", str(tmp_path / "photos"), "--out", str(out),
    ])  # fmt: skip

    error = capsys.readouterr().err
    assert code == 3
    assert f"show '{known}', which the model knows already. Give images of known classes as --seen-images." in error
    assert not out.exists()
