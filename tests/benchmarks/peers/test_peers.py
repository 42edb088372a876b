"""The other ways to have the same classes: each gives the same answers, or its own method's, and adds classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import icis_deploy
from benchmarks.bench.bench import PRESETS, LabeledInputs
from benchmarks.peers import torch_programs as torch_peers
from benchmarks.peers import ways as peer_ways
from benchmarks.peers.peers import NUM_ADDED, measure_peers
from benchmarks.peers.ways import conse_from
from benchmarks.results.result import parse_result, serialize_result
from benchmarks.results.text import text_of
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import IncompatibleError, MissingDependencyError, ModelLoadError, UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.images.loading import load_image_list

pytestmark = pytest.mark.slow  # torch compiles a model

SEEN, UNSEEN = 40, 6


class TinyNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.maps = torch.nn.Conv2d(3, 24, 5, stride=3)
        self.classifier = torch.nn.Linear(24, SEEN)

    def forward(self, image):
        return self.classifier(self.maps(image).relu().mean((2, 3)))


class TinyNetworkFeatures(torch.nn.Module):
    """What the last layer of a network or of its program is given."""

    def __init__(self, module):
        super().__init__()
        self.maps = module.maps

    def forward(self, image):
        weight, bias = self.maps.weight, self.maps.bias
        return torch.nn.functional.conv2d(image, weight, bias, stride=3).relu().mean((2, 3))


@pytest.fixture(scope="module")
def torch_bundles(tiny_project, tmp_path_factory):
    """A torch program, and bundles made from it."""
    folder = tmp_path_factory.mktemp("torch")
    torch.manual_seed(0)
    program = torch.export.export(
        TinyNetwork().eval(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, folder / "model.pt2")
    opened = icis_deploy.inspect(folder / "model.pt2", classes=tiny_project.classes)
    rows = np.random.default_rng(0).normal(size=(UNSEEN, 25)).astype(np.float32)
    update = ClassUpdate(
        base_fingerprint=opened.head.fingerprint,
        rows=rows,
        arbiter=np.tile(np.float32([0.3, -0.5, 0.4, 0.2, -0.6]), (UNSEEN, 1)),
        added=tiny_project.unseen_names,
        self_test_seed=0,
    )
    for head, capacity in (("fused", None), ("updatable", 64)):
        icis_deploy.export(
            opened,
            updates=[update],
            options=icis_deploy.ExportOptions(head=head, capacity=capacity, preprocess=tiny_project.preprocess),
            out=folder / head,
        )
    return folder


@pytest.fixture(scope="module")
def result(torch_bundles, tiny_project):
    inputs = LabeledInputs(labeled=load_image_list(tiny_project.images), source="46 images")
    with pytest.MonkeyPatch.context() as patch:
        # Compiling takes a minute: that it is compiled again for more classes is torch's promise and not ours.
        patch.setattr(peer_ways, "compiled", lambda module: module)
        return measure_peers(
            [torch_bundles / "fused", torch_bundles / "updatable"],
            model=torch_bundles / "model.pt2",
            descriptors=icis_deploy.load_descriptors(tiny_project.descriptors),
            inputs=inputs,
            preset=replace(PRESETS["quick"], budget_s=0.1),
            batch_sizes=[1],
            num_threads=1,
        )


def test_every_way_is_measured_beside_the_first_bundle(result):
    names = ["fused", "updatable", "OpenVINO", "PyTorch eager", "torch.compile", "re-export", "ConSE"]

    assert [target.name for target in result.targets] == names
    assert [latency.label for latency in result.runs[0].measurement.latencies] == names
    assert {each.against for each in result.runs[0].measurement.comparisons} == {"fused"}
    assert result.settings["left_out"] == {}


def test_ways_that_hold_the_same_rows_give_the_same_answers(result):
    fused = result.target("fused").accuracy
    for name in ("updatable", "OpenVINO", "PyTorch eager", "torch.compile", "re-export"):
        (parity,) = result.target(name).parity
        assert parity.agreement == 1.0
        assert parity.max_scaled_error < 1e-3
        assert (result.target(name).accuracy.T, result.target(name).accuracy.S) == (fused.T, fused.S)


def test_every_way_states_how_long_it_takes_to_add_classes_and_what_it_takes(result):
    for target in result.targets:
        if target.name == "OpenVINO":
            assert target.add_classes is None
            continue
        assert target.add_classes.num_classes == NUM_ADDED
        assert target.add_classes.timing.median_ms > 0
        assert target.add_classes.how
    assert "committed to the disk" in result.target("updatable").add_classes.how


def test_the_result_can_be_written_down_and_read_by_people(result):
    assert parse_result(serialize_result(result)) == result
    lines = text_of(result).splitlines()
    assert any(line.startswith("batch 1") for line in lines)
    assert any(line.startswith("add classes") for line in lines)
    peers = "OpenVINO, PyTorch eager, torch.compile, re-export, ConSE"
    assert [line for line in lines if "no startup" in line] == [f"{peers}: no startup: measured for bundles alone"]


def test_a_way_that_cannot_run_is_left_out_with_its_reason(torch_bundles, tiny_bundles, monkeypatch):
    monkeypatch.setattr(torch_peers.shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match="needs a C\\+\\+ compiler"):
        torch_peers.compiled(TinyNetwork())
    found = measure_peers(
        [tiny_bundles.fused],
        model=tiny_bundles.project.model,
        descriptors=None,
        inputs=None,
        preset=replace(PRESETS["quick"], budget_s=0.05),
        batch_sizes=[1],
        num_threads=1,
    )

    assert [target.name for target in found.targets] == ["fused", "OpenVINO"]
    assert sorted(found.settings["left_out"]) == ["ConSE", "PyTorch eager", "re-export", "torch.compile"]
    assert "no torch model" in found.settings["left_out"]["PyTorch eager"]
    assert "ConSE was left out" in text_of(found)


def test_a_model_that_does_not_fit_is_refused(torch_bundles, tiny_bundles, tmp_path):
    options = {"descriptors": None, "inputs": None, "preset": PRESETS["quick"], "batch_sizes": [1], "num_threads": 1}

    with pytest.raises(UsageError, match=r"neither a \.pt2 nor a \.onnx"):
        measure_peers([tiny_bundles.fused], model=tmp_path / "model.pth", **options)
    with pytest.raises(IncompatibleError, match="Give the model that it was exported from"):
        measure_peers([tiny_bundles.fused], model=tiny_bundles.fused / "model.onnx", **options)


def test_rows_are_added_to_a_torch_model_and_the_seen_logits_stay():
    module = TinyNetwork().eval()
    layer = module.classifier
    seen = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().numpy()
    images = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)
    before = torch_peers.runner(module, 1)(images)
    for number in (3, 5):
        torch_peers.add_rows(module, seen, np.ones((number, 25), dtype=np.float32))
        after = torch_peers.runner(module, 1)(images)
        assert after.shape == (2, SEEN + number)
        np.testing.assert_allclose(after[:, :SEEN], before, rtol=1e-5, atol=1e-6)


def test_logits_of_a_torch_model_follow_an_arbiter_as_those_of_a_head_do():
    module = torch.export.export(
        TinyNetwork().eval(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module()
    seen = torch.cat([module.classifier.weight, module.classifier.bias[:, None]], dim=1).detach().numpy()
    random = np.random.default_rng(0)
    images = random.random((5, 3, 16, 16), dtype=np.float32)
    features = torch_peers.runner(TinyNetworkFeatures(module), 1)(images)
    for number in (3, 5):  # classes may be added again
        rows = random.normal(size=(number, 25)).astype(np.float32)
        coefficients = random.normal(size=(number, 5)).astype(np.float32)
        torch_peers.add_rows(module, seen, rows)
        torch_peers.add_arbiter(module, seen, coefficients)
        found = torch_peers.runner(module, 1)(images)

        logits = features @ np.concatenate([seen, rows])[:, :-1].T + np.concatenate([seen, rows])[:, -1]
        statistics = seen_statistics(features, logits[:, :SEEN], deviation_lengths(seen))
        logits[:, SEEN:] += statistics @ coefficients.T
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_a_torch_model_whose_features_are_not_seen_gets_no_arbiter():
    module = TinyNetwork().eval()
    seen = torch.cat([module.classifier.weight, module.classifier.bias[:, None]], dim=1).detach().numpy()
    with pytest.raises(ModelLoadError, match="needs the features of the torch model"):
        torch_peers.add_arbiter(module, seen, np.ones((2, 5), dtype=np.float32))


def test_conse_prefers_the_class_whose_descriptor_is_between_the_probable_ones():
    names = ("horse", "tiger", "zebra", "fish")
    values = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=np.float32)
    head = conse_from(Descriptors(values=values, class_names=names), names[:2], names[2:])

    scores = head.scores(np.array([[5.0, 5.0], [9.0, -9.0]], dtype=np.float32))

    assert scores.argmax(axis=1).tolist() == [2, 0]
    assert scores[0, 2] == pytest.approx(1.0)
    assert head.with_classes(np.ones((3, 3), dtype=np.float32)).scores(np.zeros((1, 2), np.float32)).shape == (1, 7)
