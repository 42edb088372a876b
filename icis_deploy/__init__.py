"""Teach a classifier that is already trained, or already deployed, new classes from their descriptions alone.

    import icis_deploy

    report = icis_deploy.inspect("model.onnx", classes="classes.txt")
    update = icis_deploy.inject("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
    icis_deploy.export("model.onnx", classes="classes.txt", updates=[update], head="updatable", out="bundle")
    device = icis_deploy.Device.open("bundle")
    device.predict(["okapi.jpg"])

Names are imported when they are first used, so that `import icis_deploy` costs nothing and a device never needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from icis_deploy._version import __version__

if TYPE_CHECKING:
    from icis_deploy.api.describe import describe
    from icis_deploy.api.evaluate import evaluate
    from icis_deploy.api.export import export
    from icis_deploy.api.inject import inject, train_injector
    from icis_deploy.api.models import inspect
    from icis_deploy.api.verify import verify
    from icis_deploy.bundle.manifest import Bundle, load_bundle
    from icis_deploy.bundle.model_form import ModelForm
    from icis_deploy.descriptors.descriptors import Descriptors
    from icis_deploy.descriptors.files import load_descriptors, save_descriptors
    from icis_deploy.errors import ICISDeployError
    from icis_deploy.head.class_update import ClassUpdate
    from icis_deploy.head.head import Head
    from icis_deploy.runtime.device import Device
    from icis_deploy.updates.envelope import load_update, save_update

_HOMES = {
    "Bundle": "bundle.manifest",
    "ClassUpdate": "head.class_update",
    "Descriptors": "descriptors.descriptors",
    "Device": "runtime.device",
    "Head": "head.head",
    "ICISDeployError": "errors",
    "ModelForm": "bundle.model_form",
    "describe": "api.describe",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "inject": "api.inject",
    "inspect": "api.models",
    "load_bundle": "bundle.manifest",
    "load_descriptors": "descriptors.files",
    "load_update": "updates.envelope",
    "save_descriptors": "descriptors.files",
    "save_update": "updates.envelope",
    "train_injector": "api.inject",
    "verify": "api.verify",
}

__all__ = [
    "Bundle",
    "ClassUpdate",
    "Descriptors",
    "Device",
    "Head",
    "ICISDeployError",
    "ModelForm",
    "__version__",
    "describe",
    "evaluate",
    "export",
    "inject",
    "inspect",
    "load_bundle",
    "load_descriptors",
    "load_update",
    "save_descriptors",
    "save_update",
    "train_injector",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
