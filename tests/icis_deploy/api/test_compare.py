"""Methods side by side: what is predicted, what is measured, and that images have no say in the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import icis_deploy
from icis_deploy.api.compare import ComparedMethod, ComparisonOptions, compare_methods
from icis_deploy.api.compare_plot import save_comparison_plot
from icis_deploy.errors import ImageError, UsageError
from icis_deploy.images.loading import load_image_list
from testing.tiny_project import TinyProject


def compare(project: TinyProject, methods=("ridge", "mean"), **files) -> tuple[ComparedMethod, ...]:
    given = {"classes": project.classes, "descriptors": project.descriptors, "preprocess": project.preprocess}
    options = ComparisonOptions(methods=methods, seen_accuracy=0.9)
    return compare_methods(project.model, options=options, **{**given, **files})


@pytest.fixture(scope="module")
def compared(tiny_project: TinyProject) -> tuple[ComparedMethod, ...]:
    return compare(tiny_project, images=tiny_project.images)


def test_a_method_that_reads_descriptors_is_predicted_to_be_better_than_the_mean_row(compared):
    ridge, mean = compared
    assert (ridge.name, mean.name) == ("ridge", "mean")
    assert ridge.estimate.T.value > mean.estimate.T.value + 0.2
    assert ridge.estimate.is_trustworthy
    assert not mean.estimate.is_trustworthy


def test_what_is_measured_is_what_a_bundle_with_these_rows_scores(compared, tiny_project: TinyProject, tmp_path: Path):
    update = icis_deploy.inject(
        tiny_project.model,
        classes=tiny_project.classes,
        descriptors=tiny_project.descriptors,
        options=icis_deploy.InjectionOptions(method="ridge", seen_accuracy=0.9),
        preprocess=tiny_project.preprocess,
    )
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        updates=[update],
        options=icis_deploy.ExportOptions(preprocess=tiny_project.preprocess),
        out=tmp_path / "bundle",
    )
    report = icis_deploy.evaluate(tmp_path / "bundle", images=tiny_project.images)
    measured = compared[0].measured
    assert (measured.T, measured.U, measured.S, measured.H) == (report.T, report.U, report.S, report.H)


def test_images_change_no_prediction(compared, tiny_project: TinyProject):
    without = compare(tiny_project)
    assert all(one.measured is None for one in without)
    assert [one.estimate for one in without] == [one.estimate for one in compared]


def test_images_of_classes_that_nobody_knows_are_refused_by_name(tiny_project: TinyProject):
    with pytest.raises(ImageError, match=f"{tiny_project.unseen_names[1]}"):
        compare(tiny_project, images=tiny_project.images, unseen=tiny_project.unseen_names[:1], methods=("mean",))


def test_images_without_preprocessing_are_refused(tiny_project: TinyProject):
    with pytest.raises(UsageError, match="Give `preprocess`"):
        compare(tiny_project, images=tiny_project.images, preprocess=None)


def test_a_method_that_is_not_there_is_refused_before_anything_runs(tiny_project: TinyProject):
    with pytest.raises(UsageError, match="magic"):
        compare(tiny_project, methods=("ridge", "magic"))


@pytest.mark.parametrize("with_images", [True, False])
def test_the_plot_is_a_picture_with_room_for_every_method(compared, with_images: bool, tmp_path: Path):
    chosen = (
        compared
        if with_images
        else tuple(
            ComparedMethod(name=one.name, method=one.method, estimate=one.estimate, measured=None, train_s=1.0)
            for one in compared
        )
    )
    save_comparison_plot(tmp_path / "few.png", chosen)
    save_comparison_plot(tmp_path / "many.png", chosen * 4)
    few, many = (np.asarray(Image.open(tmp_path / name)) for name in ("few.png", "many.png"))
    assert many.shape[0] > few.shape[0]
    assert few.shape[1] == many.shape[1]
    green = (few[..., 1] > few[..., 0].astype(int) + 60) & (few[..., 1] > few[..., 2])
    assert green.any() == with_images


def test_images_that_a_list_names_twice_are_told_as_inject_does(tiny_project: TinyProject, tmp_path: Path):
    listed = load_image_list(tiny_project.images)
    seen = [
        f"{path},{label}"
        for path, label in zip(listed.paths, listed.labels, strict=True)
        if label in tiny_project.seen_names
    ]
    repeated = tmp_path / "known.csv"
    repeated.write_text("\n".join(["file,class", *seen, *seen]))
    options = ComparisonOptions(methods=("mean",), max_seen_loss=0.1, seen_images=repeated)

    with pytest.warns(icis_deploy.ICISDeployWarning, match=f"^{len(seen)} of {2 * len(seen)} images of .*count once"):
        (mean,) = compare_methods(
            tiny_project.model,
            classes=tiny_project.classes,
            descriptors=tiny_project.descriptors,
            preprocess=tiny_project.preprocess,
            options=options,
        )

    assert "count once" in mean.warnings[-1]
