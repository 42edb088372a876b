"""The benchmark on a tiny classifier: what it counts, and where its figures come from."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.zero_shot import fit
from benchmarks.zero_shot.fit import FAST, PUBLISHED, load_problem, measure_fit, text_of
from icis_deploy.api.inject import train_injector
from icis_deploy.cli.main import run
from icis_deploy.errors import UsageError
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.predictors.icis import ICISConfig
from testing.tiny_project import NUM_SEEN, NUM_UNSEEN, TinyProject


@pytest.fixture(scope="module")
def problem(tiny_project: TinyProject):
    return load_problem(
        str(tiny_project.model),
        classes=tiny_project.classes,
        descriptors=tiny_project.descriptors,
        preprocess=tiny_project.preprocess,
        images=tiny_project.images,
    )


@pytest.fixture(scope="module")
def report(problem):
    return measure_fit(problem, methods=["ridge"], published_epochs=50, num_rounds=2)


def test_all_ways_are_measured_in_every_round(report):
    assert [way.name for way in report.ways] == [PUBLISHED, FAST, "inject, ridge"]
    assert all(len(way.seconds) == 2 and min(way.seconds) > 0 for way in report.ways)
    assert (report.num_seen, report.num_unseen) == (NUM_SEEN, NUM_UNSEEN)


def test_the_published_recipe_counts_as_all_its_epochs(report):
    published = report.ways[0]
    assert report.published_epochs == 50
    assert not report.was_run_to_the_end
    assert published.median_s == pytest.approx(50 * report.published_epoch_s)
    assert published.times_faster is None


def test_a_ratio_is_of_times_of_the_same_round(report):
    fast = report.ways[1]
    ratios = sorted(theirs / ours for theirs, ours in zip(report.ways[0].seconds, fast.seconds, strict=True))
    assert ratios[0] <= fast.times_faster.value <= ratios[1]


def test_accuracies_are_measured_on_images_where_rows_are_known(problem, report):
    assert [way.source for way in report.ways] == ["none", "images", "images"]
    options = InjectionOptions(method="ridge", balance=0.5)
    injection = train_injector(
        problem.opened, descriptors=problem.descriptors, options=options, preprocess=problem.preprocessing
    )
    measured = problem.photos.measure(problem.opened.head, injection.rows, injection.class_names)
    assert report.ways[2].accuracies == {name: getattr(measured, name) for name in ("T", "U", "S", "H")}


def test_the_table_has_a_line_for_each_way(report):
    lines = text_of(report).splitlines()

    assert lines[1].startswith("published recipe: 50 epochs (as given) of ")
    assert [line[:24].strip() for line in lines[4:]] == [PUBLISHED, FAST, "inject, ridge"]
    assert lines[4].split()[-4:] == ["-"] * 4
    assert f"{100 * report.ways[2].accuracies['S']:.1f} %" in lines[6]


def test_without_a_number_of_epochs_the_published_recipe_is_trained_to_its_stop(problem, monkeypatch):
    # Its own rule, with a short window; the recipe itself would take minutes.
    rule = replace(ICISConfig.published().stopping_rule, window=2, patience=2, min_slope=1e9)
    short = replace(ICISConfig.published(), stopping_rule=rule)
    monkeypatch.setattr(ICISConfig, "published", classmethod(lambda _: short))

    report = measure_fit(problem, methods=[], num_rounds=1)

    assert report.was_run_to_the_end
    assert report.published_epochs == 5
    assert report.ways[0].source == "images"


@pytest.mark.parametrize("counts", [{"num_rounds": 0}, {"published_epochs": 0}])
def test_counts_start_at_one(problem, counts):
    with pytest.raises(UsageError, match="count from 1"):
        measure_fit(problem, **counts)


def test_the_command_gives_what_cross_validation_predicts_where_there_are_no_images(tiny_project: TinyProject, capsys):
    files = ["--classes", str(tiny_project.classes), "--descriptors", str(tiny_project.descriptors)]
    arguments = ["bench-fit", str(tiny_project.model), *files, "--method", "ridge", "--published-epochs", "9"]

    assert run([*arguments, "--rounds", "1", "--format", "json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["command"] == "bench-fit"
    assert [way["name"] for way in result["ways"]] == [PUBLISHED, FAST, "inject, ridge"]
    assert [way["source"] for way in result["ways"]] == ["none", "none", "cross-validation"]
    assert 0 < result["ways"][2]["accuracies"]["H"] <= 1
    assert result["ways"][1]["times_faster"]["high"] is None
    assert "round 1 of 1: fast recipe" in captured.err


def test_the_first_epoch_is_not_timed(problem, monkeypatch):
    moments = iter([0.0, 100.0, 101.0, 103.0, 104.0])  # of the start, the ends of three epochs, and the end
    monkeypatch.setattr(fit, "time", SimpleNamespace(perf_counter=lambda: next(moments)))  # of this module alone

    assert fit._epoch_s(problem, ICISConfig.published(), seed=0) == pytest.approx(1.5)
