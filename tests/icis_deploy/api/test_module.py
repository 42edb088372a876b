"""A module with an update's rows gives the original's logits, and after them what a device gives new classes."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest

import icis_deploy
from icis_deploy.errors import ClassConflictError, IncompatibleError, UsageError, WrongBaseError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.head.class_update import ClassUpdate
from icis_deploy.head.head import Head

torch = pytest.importorskip("torch")
nn = torch.nn

NAMES, NEW = ("cat", "dog", "owl"), ("okapi", "ibex")
FEATURE_DIM = 4


def classifier(*, bias: bool = True, dtype: object = None) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, FEATURE_DIM), nn.ReLU(), nn.Linear(FEATURE_DIM, len(NAMES), bias=bias))
    return model.to(dtype or torch.float32).eval()


def head_of(layer: nn.Module) -> Head:
    weight = layer.weight.detach().float().flatten(1).numpy()
    bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias.detach().float().numpy()
    return Head(rows=np.concatenate([weight, bias[:, None]], axis=1), class_names=NAMES)


def update_for(head: Head, **changes: object) -> ClassUpdate:
    rows = np.random.default_rng(1).normal(size=(len(NEW), FEATURE_DIM + 1)).astype(np.float32)
    return ClassUpdate(**{"base_fingerprint": head.fingerprint, "rows": rows, "added": NEW, **changes})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_are_the_originals_and_then_those_of_the_rows(bias, dtype):
    model, inputs = classifier(bias=bias, dtype=dtype), torch.randn(5, 6).to(dtype)
    before = copy.deepcopy(model.state_dict())
    update = update_for(head_of(model[2]))
    larger = icis_deploy.add_to_module(model, update, classes=NAMES)
    features, tolerance = model[:2](inputs).double().detach().numpy(), 1e-2 if dtype == torch.bfloat16 else 1e-5

    found = larger(inputs)
    assert found.dtype == dtype
    # A wider product may be summed in another order.
    np.testing.assert_allclose(found[:, :3].double().detach(), model(inputs).double().detach(), atol=tolerance)
    expected = features @ update.rows[:, :-1].T + update.rows[:, -1]
    np.testing.assert_allclose(found[:, 3:].double().detach(), expected, rtol=1e-1, atol=5 * tolerance)
    assert torch.equal(larger[2].weight[:3], model[2].weight)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[2].out_features == 3
    assert larger[2].out_features == 5


def test_a_device_and_the_module_agree_after_an_export(tiny_project, tmp_path):
    """The whole way: a module, its export, an injection, a device, and the module again."""
    torch.manual_seed(1)
    names = [f"class{index:02d}" for index in range(40)]
    model = nn.Sequential(
        nn.Conv2d(3, 24, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 40)
    ).eval()
    program = torch.export.export(model, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    opened = icis_deploy.inspect(tmp_path / "model.pt2", classes=names)
    options = icis_deploy.InjectionOptions(method="ridge", calibration="length")
    update = icis_deploy.inject(opened, descriptors=tiny_project.descriptors, options=options)
    icis_deploy.export(opened, updates=[update], out=tmp_path / "bundle")
    inputs = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)

    larger = icis_deploy.add_to_module(model, update, classes=names)
    with icis_deploy.Device.open(tmp_path / "bundle") as device:
        np.testing.assert_allclose(
            larger(torch.from_numpy(inputs)).detach(), device.logits(inputs).values, rtol=1e-4, atol=1e-4
        )


def test_it_can_be_trained_on_and_the_original_does_not_move():
    model = classifier()
    larger = icis_deploy.add_to_module(model, update_for(head_of(model[2])), classes=NAMES).train()
    before, inputs = model[2].weight.clone(), torch.randn(32, 6)
    optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(larger(inputs), torch.full((32,), 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0] / 2
    assert torch.equal(model[2].weight, before)


def test_an_arbiter_becomes_a_layer_that_computes_it():
    model = classifier()
    head = head_of(model[2])
    coefficients = np.random.default_rng(2).normal(size=(2, 5)).astype(np.float32)
    update = update_for(head, arbiter=coefficients)
    larger = icis_deploy.add_to_module(model, update, classes=NAMES)
    inputs = torch.randn(7, 6)
    features = model[:2](inputs).detach().numpy()
    seen = head.logits(features).astype(np.float32)

    expected = features @ update.rows[:, :-1].T + update.rows[:, -1]
    expected = expected + seen_statistics(features, seen, deviation_lengths(head.rows)) @ coefficients.T
    np.testing.assert_allclose(larger(inputs)[:, 3:].detach(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(larger(inputs)[:, :3].detach(), seen, rtol=1e-5, atol=1e-5)
    assert set(larger.state_dict()) >= {"2.linear.weight", "2.arbiter", "2.row_lengths"}


def test_the_head_is_found_by_its_fingerprint_among_layers_of_its_shape():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher, self.first, self.again = nn.Linear(FEATURE_DIM, 3), nn.Linear(FEATURE_DIM, 3), None
            self.again = self.first

        def forward(self, features):
            return self.first(features), self.again(features), self.teacher(features)

    model = TwoHeads()
    larger = icis_deploy.add_to_module(model, update_for(head_of(model.first)), classes=NAMES)
    first, again, teacher = larger(torch.zeros(1, FEATURE_DIM))

    assert (first.shape[1], again.shape[1], teacher.shape[1]) == (5, 5, 3)
    assert larger.first is larger.again


def test_a_convolution_of_one_pixel_is_a_head_and_takes_no_arbiter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(FEATURE_DIM, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    update = update_for(head_of(model[0]))
    larger = icis_deploy.add_to_module(model, update, classes=NAMES)

    assert larger(torch.zeros(2, FEATURE_DIM, 3, 3)).shape == (2, 5)
    with pytest.raises(IncompatibleError, match="has an arbiter, and the head of the module is a convolution"):
        icis_deploy.add_to_module(
            model, update_for(head_of(model[0]), arbiter=np.ones((2, 5), np.float32)), classes=NAMES
        )


def test_a_configuration_names_the_classes_and_is_brought_up_to_date():
    model = classifier()
    model.num_labels, model.config = 3, SimpleNamespace(id2label=dict(enumerate(NAMES)), label2id={})
    larger = icis_deploy.add_to_module(model, update_for(head_of(model[2])))

    assert larger.config.id2label == dict(enumerate((*NAMES, *NEW)))
    assert larger.config.label2id["ibex"] == 4
    assert larger.num_labels == 5
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.num_labels == 3


def test_a_layer_alone_is_a_module_too():
    layer = nn.Linear(FEATURE_DIM, 3)
    assert icis_deploy.add_to_module(layer, update_for(head_of(layer)), classes=NAMES).out_features == 5
    assert layer.out_features == 3


def test_another_head_or_other_names_are_refused():
    model = classifier()
    update = update_for(head_of(model[2]))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[2].bias[0] += 1e-3

    with pytest.raises(WrongBaseError, match=r"its layers with 3 rows of 4 weights \(2\) hold other rows"):
        icis_deploy.add_to_module(moved, update, classes=NAMES)
    with pytest.raises(WrongBaseError, match="or the class names are others"):
        icis_deploy.add_to_module(model, update, classes=("dog", "cat", "owl"))
    with pytest.raises(WrongBaseError, match="it has no linear layer with 2 rows of 4 weights"):
        icis_deploy.add_to_module(model, update, classes=("cat", "dog"))


def test_what_a_module_cannot_take_is_refused():
    model = classifier()
    head = head_of(model[2])
    with pytest.raises(ClassConflictError, match="replaces or removes 'okapi'"):
        icis_deploy.add_to_module(model, update_for(head, added=("ibex",), replaced=("okapi",)), classes=NAMES)
    with pytest.raises(UsageError, match="Nothing says which classes the module knows"):
        icis_deploy.add_to_module(model, update_for(head))
    with pytest.raises(UsageError, match=r"A str is no PyTorch module"):
        icis_deploy.add_to_module("model.onnx", update_for(head), classes=NAMES)
