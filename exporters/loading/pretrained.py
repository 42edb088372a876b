"""Models of transformers: a folder that `save_pretrained` wrote, or the name of a model on the hub.

Rules:

1. No code of a model is run: what needs `trust_remote_code` is refused. Weights are safetensors, or a state dict that
   is read with `weights_only`.
2. Weights must be complete: transformers would fill in what is missing at random, above all the head of a backbone that
   nobody trained as a classifier.
3. The model is float32 in evaluation mode, whatever it was saved as.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.loading.torch_modules import import_torch, quiet_torch
from exporters.onnx_io.files import first_line
from exporters.onnx_io.foreign_files import foreign_file
from exporters.stated.processors import PROCESSOR_FILE, load_processor, preprocessing_of_processor
from exporters.stated.statement import Statement, names_by_index, stated
from icis_deploy.errors import MissingDependencyError, ModelLoadError, UsageError
from icis_deploy.head.class_names import quoted
from icis_deploy.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

CONFIG_FILE = "config.json"
_HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_OTHER_KIND = re.compile(r"Unrecognized configuration class <class '[\w.]*?(?P<config>\w+)'>")
"""How transformers says that a model is no image classifier; what follows advises on what to load it as instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained:
    """A model of transformers, and what is said of it beside its weights."""

    module: Module
    """Takes a batch of images, and returns logits alone."""

    config: Any
    """Its `PretrainedConfig`."""

    class_names: Statement[tuple[str, ...]]

    preprocessing: Statement[Preprocessing] | None
    """`None` where it has no image processor."""


def is_pretrained(spec: str) -> bool:
    """Say whether MODEL is a folder of transformers, or the name of a model on the hub: `owner/name`, `@revision`.

    A name whose first part is a folder here is a path that leads nowhere, and nobody is asked for it.
    """
    path = Path(spec)
    # os.path and not pathlib, which raises where a name is too long, such as the text of a model in place of its path.
    if os.path.exists(path):  # noqa: PTH110
        return path.is_dir() and (path / CONFIG_FILE).is_file()
    if _HUB_NAME.fullmatch(spec) is None or path.suffix in _SUFFIXES:
        return False
    return not os.path.exists(path.parts[0])  # noqa: PTH110


_WEIGHTS_SUFFIXES = frozenset({".bin", ".safetensors"})
_SUFFIXES = frozenset({".onnx", ".pt2", ".pth", ".pt", ".safetensors", ".json", ".txt"})
"""Of files: who forgot to make one means no model on the hub."""


def load_pretrained(spec: str, *, needs_preprocessing: bool) -> Pretrained:
    """Load an image classifier of transformers.

    Args:
        spec: `is_pretrained` must hold.
        needs_preprocessing: Whether to read how its images are prepared.

    Raises:
        ModelLoadError: If it is no image classifier, its weights are not complete, it needs code of its own, or the hub
            cannot be reached.
        MissingDependencyError: If torch or transformers is not installed.
    """
    import_torch()
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"{spec} is a model of transformers, which is not installed.",
            where=spec,
            hint="Install it: pip install 'icis-deploy[hub]'.",
        ) from error
    name, options = _named(spec)
    try:
        with quiet_torch():
            found, report = transformers.AutoModelForImageClassification.from_pretrained(
                name,
                trust_remote_code=False,
                weights_only=True,
                # torch.onnx cannot take apart what the faster ways of attention become, in Swin for one.
                attn_implementation="eager",
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # transformers', huggingface_hub's, safetensors' and pickle's own types
        raise _refusal(spec, error) from error
    missing = sorted(map(str, report["missing_keys"]))
    if missing or report["mismatched_keys"]:
        raise ModelLoadError(
            f"{spec} lacks weights of {type(found).__name__}: {quoted(missing or report['mismatched_keys'])}. "
            f"transformers would draw them at random.",
            found=tuple(missing),
            expected="all weights of an image classifier",
            where=spec,
            hint="Give the folder of a model that was trained as a classifier.",
        )
    config = found.config
    preprocessing = None
    if needs_preprocessing:
        channels = int(getattr(config, "num_channels", 3))
        preprocessing = _stated_preprocessing(name, channels, options, spec=spec)
    return Pretrained(
        module=_logits_alone(found.float().eval()),
        config=config,
        class_names=names_by_index(config.id2label, source=f"{spec} ({CONFIG_FILE}, id2label)"),
        preprocessing=preprocessing,
    )


def _named(spec: str) -> tuple[str, dict[str, Any]]:
    """Return the folder or name to load, and how: a folder never asks the hub."""
    if Path(spec).is_dir():
        return spec, {"local_files_only": True}
    match = _HUB_NAME.fullmatch(spec)
    if match is None:
        raise UsageError(
            f"{spec} is no name of a model on the hub.",
            found=spec,
            expected="owner/name",
            where=spec,
            hint="Write owner/name, or owner/name@revision.",
        )
    revision = match["revision"]
    return match["name"], {} if revision is None else {"revision": revision}


def _stated_preprocessing(
    name: str, num_channels: int, options: dict[str, Any], *, spec: str
) -> Statement[Preprocessing] | None:
    if Path(name).is_dir() and not (Path(name) / PROCESSOR_FILE).is_file():
        return None

    def read() -> Preprocessing:
        with quiet_torch():
            processor = load_processor(name, **options)
            return preprocessing_of_processor(processor, num_channels=num_channels, where=spec)

    return stated(read, source=f"{spec} ({PROCESSOR_FILE})")


def _logits_alone(model: Any) -> Module:
    torch = import_torch()

    class Logits(torch.nn.Module):  # type: ignore[misc,name-defined]  # a class of a library without types
        """The classifier, with its logits as the only output."""

        def __init__(self) -> None:
            super().__init__()
            self.classifier_model = model

        def forward(self, pixel_values: Tensor) -> Tensor:
            logits: Tensor = self.classifier_model(pixel_values=pixel_values).logits
            return logits

    module: Module = Logits().eval()
    return module


def _refusal(spec: str, error: Exception) -> ModelLoadError:
    """Return what went wrong in words: transformers' own run to paragraphs."""
    text = str(error)
    if "trust_remote_code" in text:
        return ModelLoadError(
            f"{spec} needs code of its own, which would run here; refused.",
            found="code of the model's own",
            expected="a model that transformers itself knows",
            where=spec,
            hint="Look through that code, and give the model as a factory of yours, or as a .onnx file.",
        )
    other = _OTHER_KIND.search(text)
    if other is not None:
        return ModelLoadError(
            f"transformers cannot load {spec} as an image classifier: its configuration is a {other['config']}, and no "
            f"image classifier of transformers has one.",
            found=other["config"],
            expected="the configuration of an image classifier of transformers",
            where=spec,
            hint="If it classifies text, sound or the like, export it yourself with one float32 input, which a model "
            "of token ids casts itself, and give the .onnx file.",
        )
    if not Path(spec).is_dir():
        return ModelLoadError(
            f"{spec} is no file or folder here, and no model could be had from the hub: {first_line(error)}.",
            found=first_line(error),
            expected="a path, or the name of a model on the hub",
            where=spec,
            hint="Check the name. Without a network, download the model where there is one (hf download NAME), and "
            "give its folder.",
        )
    for file in sorted(Path(spec).glob("*.*")):
        foreign = foreign_file(file, may_be_zip=True) if file.suffix in _WEIGHTS_SUFFIXES else None
        if foreign is not None:
            return ModelLoadError(
                f"transformers cannot load {spec} as an image classifier: {file.name} is {foreign[0]}.",
                found=foreign[0],
                expected="weights of an image classifier of transformers",
                where=file,
                hint=foreign[1],
            )
    return ModelLoadError(
        f"transformers cannot load {spec} as an image classifier: {first_line(error)}.",
        found=first_line(error),
        expected="a folder of an image classifier of transformers",
        where=spec,
        hint="Save it again with save_pretrained(), or export it yourself and give the .onnx file.",
    )
