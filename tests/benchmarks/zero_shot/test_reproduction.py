"""The whole reproduction, on small files in the true format."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest

from benchmarks.zero_shot import reproduction
from benchmarks.zero_shot.reproduction import PAPER, PUBLISHED, published_rows, reproduce, score_rows, text_of
from benchmarks.zero_shot.xlsa17 import load_zero_shot_data
from icis_deploy.errors import UsageError
from tests.benchmarks.xlsa17_files import FEATURE_DIM, NUM_SEEN, NUM_UNSEEN, write_data_set
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def script():
    """`scripts/experiments/reproduce_icis.py` as a module."""
    spec = importlib.util.spec_from_file_location(
        "reproduce_icis", REPOSITORY / "scripts" / "experiments" / "reproduce_icis.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data_set(folder / "CUB")
    return folder


@pytest.fixture(scope="module")
def report(data_folder):
    return reproduce(data_folder / "CUB", seeds=range(2), methods=["ridge"], head_epochs=12, max_epochs=2)


def test_the_head_is_good_and_ridge_recognises_unseen_classes(report):
    assert (report.num_seen, report.num_unseen) == (NUM_SEEN, NUM_UNSEEN)
    assert min(report.head_accuracies) > 80
    ridge = report.rows[1]
    assert ridge.name == "ridge"
    assert ridge.figures["T"].mean > 80
    assert ridge.figures["H"].mean > 40


def test_the_published_recipe_comes_first_and_its_epochs_are_reported(report):
    assert report.rows[0].name == PUBLISHED
    assert report.icis_epochs == (2, 2)
    assert set(report.rows[0].figures) == {"T", "H", "U", "S"}


def test_the_table_sets_our_figures_beside_the_papers(report):
    lines = text_of([report]).splitlines()

    assert lines[0].startswith("CUB: 24 seen and 6 unseen classes, 2 seeds; S of the heads alone ")
    assert lines[2].split() == ["in", "the", "paper", "60.6", "56.5", "45.8", "73.7"]
    ours = report.rows[0].figures["T"].mean
    assert f"{ours:.1f} ±" in lines[3]
    assert f"{ours - PAPER['CUB']['T']:+.1f}" in lines[-1]


def test_scores_are_those_of_the_rows_given(data_folder):
    data = load_zero_shot_data(data_folder / "CUB")
    means = np.stack(
        [data.trainval.features[data.trainval.labels == label].mean(0) for label in range(NUM_SEEN)]
        + [
            data.test_unseen.features[data.test_unseen.labels == NUM_SEEN + label].mean(0)
            for label in range(NUM_UNSEEN)
        ]
    )
    rows = np.concatenate([means, -0.5 * (means**2).sum(1, keepdims=True)], axis=1)  # the nearest class mean

    good = score_rows(data, rows[:NUM_SEEN], rows[NUM_SEEN:])
    swapped = score_rows(data, rows[:NUM_SEEN], rows[NUM_SEEN:][::-1])

    assert min(good.T, good.U, good.S, good.S_original) > 0.9
    assert swapped.T < 0.2
    assert abs(swapped.S - good.S) < 0.05


def test_the_batches_of_a_data_set_are_those_of_the_authors(data_folder, tmp_path, monkeypatch):
    configs = []

    def stop(*_arguments, config, **_options):
        configs.append(config)
        raise UsageError("seen enough")

    monkeypatch.setattr(reproduction, "fit_icis", stop)
    for name in ("CUB", "AWA2"):
        data = load_zero_shot_data(write_data_set(tmp_path / name))
        with pytest.raises(UsageError):
            published_rows(data, np.zeros((NUM_SEEN, FEATURE_DIM + 1), np.float32), seed=0)

    assert [(config.batch_size, config.learning_rate) for config in configs] == [(16, 1e-5), (20, 1e-5)]


def test_the_script_writes_all_figures_and_says_which_are_far_from_the_papers(script, data_folder, tmp_path, capsys):
    out = tmp_path / "cub.json"
    arguments = [str(data_folder), "--dataset", "CUB", "--seeds", "1", "--json", str(out), "--tolerance", "2"]
    arguments += ["--head-epochs", "3", "--max-epochs", "1"]

    assert script.main(arguments) == 1

    captured = capsys.readouterr()
    assert "CUB: 24 seen and 6 unseen classes, 1 seed;" in captured.out
    assert "±" not in captured.out
    assert "the paper has 60.6, over 2 apart" in captured.out
    assert captured.err.startswith("CUB, seed 0, published recipe: T ")
    content = json.loads(out.read_text())
    (data_set,) = content["data_sets"]
    assert content["paper"]["CUB"] == PAPER["CUB"]
    assert data_set["rows"][0]["figures"]["T"]["deviation"] == 0
    assert content["environment"]["sections"]["versions"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "There is no folder CUB, AWA2, SUN in"),
        (["--dataset", ".", "--seeds", "0"], 2, "--seeds, --head-epochs and --max-epochs count from 1."),
        (
            ["--dataset", ".", "--tolerance", "3"],
            2,
            "--tolerance is 3 points, for .; expected 0 or more, and data sets",
        ),
        (["--json", "nowhere/results.json"], 2, "Create it, or choose another path."),
        (["--json", __file__], 2, "already exists. Choose another path"),
        (["--dataset", "SUN"], 2, r"docs/reproduction.md says where the data is"),
    ],
)
def test_the_script_says_what_is_missing(script, tmp_path, capsys, arguments, code, message):
    assert script.main([str(tmp_path), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_wrong_method_is_refused_before_anything_is_read(script, tmp_path, capsys):
    (tmp_path / "CUB").mkdir()

    assert script.main([str(tmp_path), "--dataset", "CUB", "--method", "magic"]) == 2
    assert "There is no method 'magic'" in capsys.readouterr().err
