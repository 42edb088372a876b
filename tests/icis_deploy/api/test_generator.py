"""Where the best method has no closed form, a generator is made by the next best, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

import icis_deploy
from icis_deploy.api.generator import WITHOUT_CLOSED_FORM
from icis_deploy.injection import inject as injection_module
from icis_deploy.injection.predictors.registry import METHODS
from testing.tiny_project import TinyProject


def write(project: TinyProject, out: Path, **options: object) -> object:
    return icis_deploy.export_generator(
        project.model,
        classes=project.classes,
        descriptors=project.descriptors,
        out=out,
        options=icis_deploy.GeneratorOptions(
            injection=icis_deploy.InjectionOptions(**options), preprocess=project.preprocess
        ),
    )


def test_the_next_best_method_takes_the_place_of_one_without_a_closed_form(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Rows that are all alike recognise nothing, so that the choice between the two is certain.
    monkeypatch.setattr(injection_module, "candidate_methods", lambda _setup: (METHODS["mixture"], METHODS["mean"]))
    with pytest.warns(icis_deploy.ICISDeployWarning, match="The best method here is mixture, .* It is made by mean"):
        written = write(tiny_project, tmp_path / "generator.onnx")
    assert written.metadata.method == "mean"


def test_a_method_that_was_asked_for_is_not_replaced(tiny_project: TinyProject, tmp_path: Path):
    with pytest.raises(icis_deploy.errors.IncompatibleError, match="'mixture' solves a problem for each class"):
        write(tiny_project, tmp_path / "generator.onnx", method="mixture")
    assert not list(tmp_path.iterdir())


def test_the_next_best_is_chosen_as_the_best_is(tiny_project: TinyProject):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            injection_module, "candidate_methods", lambda _setup: tuple(METHODS[name] for name in ("ridge", "mean"))
        )
        injection = icis_deploy.train_injector(
            tiny_project.model, classes=tiny_project.classes, descriptors=tiny_project.descriptors
        )
    assert injection.selection is not None
    assert injection.selection.best_without(()) == injection.method
    assert injection.selection.best_without({injection.method}) in {"ridge", "mean"} - {injection.method}
    assert injection.selection.best_without({"ridge", "mean"}) is None
    assert set(METHODS) >= WITHOUT_CLOSED_FORM
