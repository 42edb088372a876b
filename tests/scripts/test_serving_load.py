"""The load of `scripts/experiments/serving_load.py`, for a few seconds: nothing torn or dropped."""

import copy

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from icis_deploy.runtime.answers import Prediction
from scripts.experiments import serving_load
from testing.bundles import write_bundle


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    bundle = write_bundle(tmp_path_factory.mktemp("load") / "bundle")
    return serving_load.measure(
        bundle, seconds=1, num_clients=2, updates_per_second=20, num_new_classes=4, num_rounds=1
    )


def test_no_answer_is_torn_or_dropped_while_classes_change(load):
    assert load.num_updates == 20
    assert load.failures == []
    assert (load.num_torn, load.num_wrong_labels) == (0, 0)
    assert load.num_versions > 5


def test_the_metrics_add_up(load):
    assert serving_load.wrong_counts(load) == []


def test_a_count_that_is_wrong_would_be_noticed(load):
    name = "icis_deploy_inputs_total"
    wrong = copy.copy(load)
    wrong.metrics = {**load.metrics, name: load.metrics[name] + 1}

    assert serving_load.wrong_counts(wrong) == [f"{name} is {len(load.answers) + 1}, expected {len(load.answers)}"]


def test_names_and_logits_of_two_versions_would_be_noticed():
    tensors = {"classes": ["a"], "probabilities": [0.9], "logits": [0.0, 0.0], "class_names": ["a", "b"]}
    answer = {"model_version": "1", "outputs": [{"name": name, "data": data} for name, data in tensors.items()]}

    with pytest.raises(ValueError, match="torn"):
        serving_load._read(answer, True)
    answer["outputs"][3]["data"] = ["a", "version 2 class 0"]
    with pytest.raises(ValueError, match="another version"):
        serving_load._read(answer, True)
    assert Prediction(*serving_load._read(answer, False)).version == 1
