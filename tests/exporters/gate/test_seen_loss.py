"""The gate holds an export to what its new classes may cost the seen ones."""

import json

import numpy as np
import pytest
from PIL import Image

import icis_deploy
from icis_deploy.api.models import head_of, inspect
from icis_deploy.bundle.manifest import load_bundle
from icis_deploy.cli.main import run
from icis_deploy.errors import GateFailedError, UsageError
from testing.tiny_project import FEATURE_DIM, SIDE


@pytest.fixture(scope="module")
def head(tiny_project):
    return head_of(inspect(tiny_project.model, classes=tiny_project.classes))


@pytest.fixture(scope="module")
def photos(tiny_project, tmp_path_factory):
    """A list of 120 images, flat patches of many colours, each of the class that the model answers with."""
    folder = tmp_path_factory.mktemp("photos")
    bundle = folder / "original"
    options = icis_deploy.ExportOptions(preprocess=tiny_project.preprocess)
    icis_deploy.export(tiny_project.model, classes=tiny_project.classes, out=bundle, options=options)
    random = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(120)]
    for path in paths:
        patches = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(patches.repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1)).save(path)
    answers = icis_deploy.Device.open(bundle).predict(paths, top=1)
    lines = [f"{path.name},{answer.class_names[0]}" for path, answer in zip(paths, answers, strict=True)]
    (folder / "images.csv").write_text("\n".join(["file,class", *lines]) + "\n")
    return folder / "images.csv"


def update_with(head, *, bias, budget=None):
    """An update of two classes that win everywhere, or nowhere."""
    rows = np.zeros((2, FEATURE_DIM + 1), dtype=np.float32)
    rows[:, -1] = bias
    provenance = {} if budget is None else {"budget": {"max_seen_loss": budget}}
    return icis_deploy.ClassUpdate(
        base_fingerprint=head.fingerprint, rows=rows, added=("okapi", "quagga"), provenance=provenance
    )


def export(tiny_project, update, out, **settings):
    options = icis_deploy.ExportOptions(preprocess=tiny_project.preprocess, **settings)
    return icis_deploy.export(
        tiny_project.model, classes=tiny_project.classes, updates=[update], out=out, options=options
    )


@pytest.mark.parametrize("settings", [{"head": "fused"}, {"head": "updatable", "capacity": 4}], ids=["fused", "slots"])
def test_an_export_over_the_budget_of_its_update_is_rejected_with_the_classes(
    tiny_project, head, photos, tmp_path, settings
):
    with pytest.raises(
        GateFailedError,
        match=r"^The gate for what new classes may cost was not passed by model\.onnx: new classes cost 100\.0 points "
        r"of seen accuracy, 100\.0 -> 0\.0 % on 120 images .* over the budget of 2 points; most is lost by 'class",
    ) as raised:
        export(tiny_project, update_with(head, bias=1e4, budget=0.02), tmp_path / "out", images=photos, **settings)

    assert not (tmp_path / "out").exists()
    assert raised.value.reports[0].seen_loss.taking[0].name == "okapi"
    assert raised.value.reports[0].parity_failures == ()
    report = json.loads((tmp_path / "out.rejected" / "parity.json").read_text())
    assert report[0]["seen_loss"]["verdict"] == "over"


def test_an_export_within_its_budget_states_it_in_the_manifest(tiny_project, head, photos, tmp_path):
    export(tiny_project, update_with(head, bias=-1e4, budget=0.05), tmp_path / "out", images=photos)
    stated = load_bundle(tmp_path / "out").parity[0]["seen_loss"]

    assert (stated["max_seen_loss"], stated["loss"], stated["before"], stated["num_images"]) == (0.05, 0, 1, 120)
    assert stated["interval"]["low"] == 0 < stated["interval"]["high"]


def test_without_a_stated_budget_the_loss_is_measured_and_nothing_is_refused(tiny_project, head, photos, tmp_path):
    export(tiny_project, update_with(head, bias=1e4), tmp_path / "out", images=photos)
    stated = load_bundle(tmp_path / "out").parity[0]["seen_loss"]

    assert (stated["max_seen_loss"], stated["verdict"], stated["loss"]) == (None, None, 1.0)


def test_without_images_nothing_is_measured(tiny_project, head, tmp_path):
    export(tiny_project, update_with(head, bias=1e4, budget=0.02), tmp_path / "out")

    assert load_bundle(tmp_path / "out").parity[0]["seen_loss"] is None


def test_what_is_allowed_for_an_export_replaces_what_its_update_states(tiny_project, head, photos, tmp_path):
    update = update_with(head, bias=1e4, budget=0.02)
    export(tiny_project, update, tmp_path / "out", images=photos, max_seen_loss=1.0)

    assert load_bundle(tmp_path / "out").parity[0]["seen_loss"]["verdict"] == "within"


def test_a_loss_that_no_image_measures_cannot_be_limited(tiny_project, head, tmp_path):
    with pytest.raises(UsageError, match="can only be measured on images"):
        icis_deploy.ExportOptions(max_seen_loss=0.02)
    (tmp_path / "images.csv").write_text(f"file,class\n{tiny_project.images.parent / 'class45.png'},okapi\n")
    with pytest.raises(UsageError, match="no image of a class that the original model knows"):
        export(
            tiny_project,
            update_with(head, bias=0),
            tmp_path / "out",
            images=tmp_path / "images.csv",
            max_seen_loss=0.02,
        )
    assert not (tmp_path / "out").exists()


def test_verify_measures_it_too_and_says_what_is_wrong(tiny_project, head, photos, tmp_path, capsys):
    out = tmp_path / "out"
    export(tiny_project, update_with(head, bias=1e4, budget=0.02), out)
    with pytest.raises(GateFailedError, match=r"^The bundle .* costs more than is allowed: new classes cost 100\.0"):
        icis_deploy.verify(out, against=tiny_project.model, images=photos)
    assert icis_deploy.verify(out, against=tiny_project.model, images=photos, max_seen_loss=1.0)

    arguments = ["verify", str(out), "--against", str(tiny_project.model), "--images", str(photos)]
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert "over the budget of 2 points" in captured.out
    assert captured.out.count("of seen accuracy") == 1
    assert captured.err.endswith(
        f"Error: {out} costs seen classes more than is allowed. Inject again with a smaller budget, or allow more with "
        "--max-seen-loss.\n"
    )
    assert run([*arguments, "--max-seen-loss", "100"]) == 0
    assert ": within the budget of 100 points" in capsys.readouterr().out
