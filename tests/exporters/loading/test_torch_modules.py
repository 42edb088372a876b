"""Factories and weights: what fits, what does not, and what the messages say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from exporters.loading.torch_modules import build_module, module_runner, read_state, stated_image_shape
from icis_deploy.errors import ModelLoadError, UsageError

MODELS = """
import torch

CONSTANT = 3

def linear():
    print("chatter that must not reach stdout")
    return torch.nn.Linear(4, 3)

def needs_size(size):
    return torch.nn.Linear(size, 3)

def number():
    return 7

def tied():
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
    layers[1].weight = layers[0].weight
    return layers

class Zoo:
    @staticmethod
    def linear():
        return torch.nn.Linear(4, 3)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a module of models, which is the current folder."""
    (tmp_path / "users_models.py").write_text(MODELS, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "users_models", raising=False)
    return tmp_path


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Weights of a linear layer."""
    torch.manual_seed(0)
    return {"weight": torch.randn(3, 4), "bias": torch.randn(3)}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_factory_in_the_current_folder_gets_its_weights_and_stays_quiet(project: Path, state, capfd):
    save_file(state, project / "weights.safetensors")

    module = build_module("users_models:linear", project / "weights.safetensors")

    assert torch.equal(module.weight, state["weight"])
    assert not module.training
    assert capfd.readouterr() == ("", "")


def test_a_factory_may_be_an_attribute_of_a_class(project: Path, state):
    module = build_module("users_models:Zoo.linear", save(project / "weights.pth", state))

    assert torch.equal(module.bias, state["bias"])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_unpacked(tmp_path: Path, state, key: str):
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}

    read = read_state(save(tmp_path / "checkpoint.pth", {key: parallel, "epoch": 12}))

    assert read.keys() == state.keys()
    assert torch.equal(read["weight"], state["weight"])


class Evil:
    """A pickle that would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def test_weights_that_are_a_pickle_with_code_are_refused_before_it_runs(tmp_path: Path):
    path = save(tmp_path / "evil.pth", {"weight": Evil(tmp_path / "ran")})

    with pytest.raises(ModelLoadError, match=r"evil\.pth cannot be read as weights") as caught:
        read_state(path)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelLoadError, match=f"{name} cannot be read as weights") as caught:
        read_state(tmp_path / name)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "found"), [([1, 2], "list"), ({"epoch": 3}, "dict"), (torch.ones(2), "Tensor")])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object, found: str):
    with pytest.raises(ModelLoadError, match=f"holds a {found} without named tensors; expected a state dict"):
        read_state(save(tmp_path / "weights.pth", content))


def test_a_missing_weights_file_is_named(tmp_path: Path):
    with pytest.raises(ModelLoadError, match=r"There is no weights file .*nowhere\.pth\. Check `weights`\."):
        read_state(tmp_path / "nowhere.pth")


def test_missing_unexpected_and_misshapen_weights_are_named(project: Path):
    path = save(project / "weights.pth", {"weight": torch.ones(5, 4), "scale": torch.ones(1)})

    with pytest.raises(ModelLoadError) as caught:
        build_module("users_models:linear", path)

    assert str(caught.value) == (
        f"The weights {path} do not fit users_models:linear: 'bias' missing; 'scale' unexpected; 'weight' has shape "
        f"[5, 4] where the module has [3, 4]. Check that both are of one model."
    )


@pytest.mark.parametrize("name", ["0.weight", "1.weight"])
def test_tied_weights_are_found_under_the_one_name_that_safetensors_writes(project: Path, name: str):
    state = {name: torch.randn(4, 4), "0.bias": torch.randn(4)}
    save_file(state, project / "weights.safetensors")

    module = build_module("users_models:tied", project / "weights.safetensors")

    assert torch.equal(module[0].weight, state[name])
    assert module[0].weight is module[1].weight


def test_tied_weights_that_differ_in_the_file_are_refused(project: Path):
    path = save(
        project / "weights.pth", {"0.weight": torch.ones(4, 4), "1.weight": torch.zeros(4, 4), "0.bias": torch.ones(4)}
    )

    with pytest.raises(ModelLoadError, match=r"'0\.weight', '1\.weight' are tied, .* but differ in the file\. Check"):
        build_module("users_models:tied", path)


def test_a_missing_weight_that_is_tied_is_named_by_all_of_its_names(project: Path):
    path = save(project / "weights.pth", {"0.bias": torch.ones(4)})

    with pytest.raises(ModelLoadError, match=r"'0\.weight', '1\.weight' missing\. Check"):
        build_module("users_models:tied", path)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("users_models:absent", "users_models has no 'absent'. Check the name after the colon."),
        (
            "users_models:CONSTANT",
            "users_models:CONSTANT is a int; expected a function or a class. "
            "Name a function or class that gives the network.",
        ),
        (
            "users_models:number",
            "users_models:number() returned a int; expected a torch.nn.Module. "
            "Name a function or class that gives the network.",
        ),
        (
            "users_models:needs_size",
            "users_models:needs_size() failed: TypeError: needs_size() missing 1 required positional argument: 'size'. "
            "It must work without arguments.",
        ),
        (
            "no_such_module_anywhere:model",
            "Cannot import no_such_module_anywhere: ModuleNotFoundError: No module named 'no_such_module_anywhere'. It "
            "must be installed, or lie in the current folder.",
        ),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(project: Path, state, factory: str, message: str):
    with pytest.raises(ModelLoadError) as caught:
        build_module(factory, save(project / "weights.pth", state))

    assert str(caught.value) == message


@pytest.mark.parametrize("factory", ["users_models:", ":linear", "users_models"])
def test_a_factory_without_both_parts_is_a_usage_error(project: Path, factory: str):
    with pytest.raises(UsageError, match="names no factory; expected package"):
        build_module(factory, project / "weights.pth")


@pytest.mark.parametrize("file", ["users_models.py", "models/users_models.py"])
def test_a_factory_in_a_file_is_told_how_it_is_written(project: Path, file: str):
    with pytest.raises(UsageError, match=r"names a file; .* Write users_models:linear, and run this in the folder of"):
        build_module(f"{file}:linear", project / "weights.pth")


class Stating(torch.nn.Module):
    """A module with a configuration."""

    def __init__(self, **attributes: object) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class Config:
    """A configuration as transformers has it."""

    def __init__(self, image_size: object, num_channels: int = 3) -> None:
        self.image_size = image_size
        self.num_channels = num_channels


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Stating(pretrained_cfg={"input_size": (3, 160, 160)}), (3, 160, 160)),
        (Stating(default_cfg={"input_size": [1, 28, 28]}), (1, 28, 28)),
        (Stating(config=Config(image_size=224)), (3, 224, 224)),
        (Stating(config=Config(image_size=[64, 32], num_channels=1)), (1, 64, 32)),
        (Stating(config=Config(image_size=None)), None),
        (torch.nn.Linear(2, 2), None),
    ],
)
def test_the_image_shape_is_what_the_module_states(module: torch.nn.Module, shape):
    assert stated_image_shape(module) == shape


def test_a_runner_gives_every_tensor_in_the_order_of_the_export():
    class Several(torch.nn.Module):
        def forward(self, image: torch.Tensor):
            return {"logits": image.half(), "hidden": (image * 2, None), "ids": image.argmax(dim=1)}

    logits, hidden, ids = module_runner(Several())(np.array([[1.0, 3.0]], dtype=np.float32))

    np.testing.assert_array_equal(logits, [[1, 3]])
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(hidden, [[2, 6]])
    np.testing.assert_array_equal(ids, [1])
