"""Teach a classifier that is already trained, or already deployed, new classes from their descriptions alone.

    import icis_deploy

    report = icis_deploy.inspect("model.onnx", classes="classes.txt")
    update = icis_deploy.inject("model.onnx", classes="classes.txt", descriptors="descriptors.npz")
    options = icis_deploy.ExportOptions(head="updatable", capacity=256, preprocess="preprocess.json")
    icis_deploy.export("model.onnx", classes="classes.txt", updates=[update], out="bundle", options=options)
    device = icis_deploy.Device.open("bundle")
    device.predict(["okapi.jpg"])

What is in `__all__` is public, and so are the exceptions of `icis_deploy.errors` and the parts of a benchmark's result
in `icis_deploy.results`. Everything else is internal and may change with any release.

Names are imported when they are first used, so that `import icis_deploy` costs nothing and a device never needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from icis_deploy._lazy import lazy_names
from icis_deploy._version import __version__

if TYPE_CHECKING:
    from exporters.generator.writing import WrittenGenerator
    from exporters.head.finding import HeadLocation
    from exporters.loading.models import LoadedModel
    from exporters.stated.statement import Statement
    from exporters.targets.registry import BuiltTarget
    from icis_deploy import errors, results
    from icis_deploy.api.ask_tags import ask_tags
    from icis_deploy.api.bench import BenchOptions, bench
    from icis_deploy.api.compact import compact
    from icis_deploy.api.compare import ComparedMethod, ComparisonOptions, compare_methods
    from icis_deploy.api.describe import DescribeOptions, describe
    from icis_deploy.api.diff import MovedClass, NearestClass, UpdateDiff, diff
    from icis_deploy.api.evaluate import EvaluateOptions, evaluate
    from icis_deploy.api.export import ExportOptions, export
    from icis_deploy.api.generator import GeneratorOptions, export_generator
    from icis_deploy.api.inject import inject, train_injector
    from icis_deploy.api.models import ModelSource, OpenedModel, inspect
    from icis_deploy.api.module import add_to_module
    from icis_deploy.api.outcomes import accuracy_of_outcomes, outcomes_of
    from icis_deploy.api.report import WrittenReport, report
    from icis_deploy.api.signing import keygen, rotate_keys, sign, sign_bundle, verify_bundle, verify_update
    from icis_deploy.api.verify import verify
    from icis_deploy.bundle.generator_metadata import GeneratorBlock, GeneratorMetadata, Limits
    from icis_deploy.bundle.manifest import Bundle, FileEntry, ModelInput, load_bundle
    from icis_deploy.bundle.model_form import ModelForm
    from icis_deploy.bundle.target_options import BackboneSettings, EngineSettings, TargetOptions
    from icis_deploy.descriptors.descriptors import DescriptorBlock, Descriptors
    from icis_deploy.descriptors.files import load_descriptors, save_descriptors
    from icis_deploy.descriptors.language_model import LanguageModel
    from icis_deploy.errors import ICISDeployError, ICISDeployWarning
    from icis_deploy.head.class_update import ClassUpdate, FollowedState
    from icis_deploy.head.head import Head
    from icis_deploy.images.preprocessing import Preprocessing, load_preprocessing
    from icis_deploy.injection.blocks import BlockWeight
    from icis_deploy.injection.estimate.class_warnings import Collision
    from icis_deploy.injection.estimate.estimate import Estimate
    from icis_deploy.injection.estimate.intervals import Range
    from icis_deploy.injection.inject import Injection
    from icis_deploy.injection.options import InjectionOptions
    from icis_deploy.injection.promise import Promise
    from icis_deploy.injection.rows.calibration import Injector, RowCalibration
    from icis_deploy.injection.rows.predictors import RowPredictor
    from icis_deploy.injection.validation.operating_point import CurvePoint, Rates
    from icis_deploy.injection.validation.selection import MethodChoice, TriedMethod
    from icis_deploy.metrics.accuracy import AccuracyReport, Crossing
    from icis_deploy.metrics.accuracy_loss import AccuracyKept
    from icis_deploy.metrics.outcomes import Skipped
    from icis_deploy.metrics.parity import GateProfile, ParityReport
    from icis_deploy.metrics.proportions import Interval
    from icis_deploy.metrics.seen_loss import LosingClass, SeenLoss, TakingClass
    from icis_deploy.metrics.trade_off import BudgetPoint, TradeOffPoint
    from icis_deploy.runtime.answers import Logits, Prediction
    from icis_deploy.runtime.changes.guard import ChangedAnswers
    from icis_deploy.runtime.changes.timings import ApplyTimings
    from icis_deploy.runtime.changes.updater import AppliedUpdate
    from icis_deploy.runtime.device import Device
    from icis_deploy.runtime.sessions.choice import Runtime
    from icis_deploy.runtime.state.journal import HistoryEntry
    from icis_deploy.updates.envelope import load_update, save_update
    from icis_deploy.updates.signers import KeyFile, SignerURI, SigningCommand
    from icis_deploy.updates.signing import KeyPair, SignedFile
    from icis_deploy.updates.trusted_keys import TrustedKeys

_HOMES = {
    "AccuracyKept": "icis_deploy.metrics.accuracy_loss",
    "AccuracyReport": "icis_deploy.metrics.accuracy",
    "AppliedUpdate": "icis_deploy.runtime.changes.updater",
    "ApplyTimings": "icis_deploy.runtime.changes.timings",
    "BenchOptions": "icis_deploy.api.bench",
    "BlockWeight": "icis_deploy.injection.blocks",
    "BudgetPoint": "icis_deploy.metrics.trade_off",
    "BuiltTarget": "exporters.targets.registry",
    "Bundle": "icis_deploy.bundle.manifest",
    "ChangedAnswers": "icis_deploy.runtime.changes.guard",
    "ClassUpdate": "icis_deploy.head.class_update",
    "Collision": "icis_deploy.injection.estimate.class_warnings",
    "ComparedMethod": "icis_deploy.api.compare",
    "ComparisonOptions": "icis_deploy.api.compare",
    "Crossing": "icis_deploy.metrics.accuracy",
    "CurvePoint": "icis_deploy.injection.validation.operating_point",
    "DescribeOptions": "icis_deploy.api.describe",
    "DescriptorBlock": "icis_deploy.descriptors.descriptors",
    "Descriptors": "icis_deploy.descriptors.descriptors",
    "Device": "icis_deploy.runtime.device",
    "BackboneSettings": "icis_deploy.bundle.target_options",
    "EngineSettings": "icis_deploy.bundle.target_options",
    "Estimate": "icis_deploy.injection.estimate.estimate",
    "EvaluateOptions": "icis_deploy.api.evaluate",
    "ExportOptions": "icis_deploy.api.export",
    "FileEntry": "icis_deploy.bundle.manifest",
    "FollowedState": "icis_deploy.head.class_update",
    "GateProfile": "icis_deploy.metrics.parity",
    "GeneratorBlock": "icis_deploy.bundle.generator_metadata",
    "GeneratorMetadata": "icis_deploy.bundle.generator_metadata",
    "GeneratorOptions": "icis_deploy.api.generator",
    "Head": "icis_deploy.head.head",
    "HeadLocation": "exporters.head.finding",
    "HistoryEntry": "icis_deploy.runtime.state.journal",
    "ICISDeployError": "icis_deploy.errors",
    "ICISDeployWarning": "icis_deploy.errors",
    "Injection": "icis_deploy.injection.inject",
    "InjectionOptions": "icis_deploy.injection.options",
    "Injector": "icis_deploy.injection.rows.calibration",
    "Interval": "icis_deploy.metrics.proportions",
    "KeyFile": "icis_deploy.updates.signers",
    "KeyPair": "icis_deploy.updates.signing",
    "LanguageModel": "icis_deploy.descriptors.language_model",
    "Limits": "icis_deploy.bundle.generator_metadata",
    "LoadedModel": "exporters.loading.models",
    "Logits": "icis_deploy.runtime.answers",
    "LosingClass": "icis_deploy.metrics.seen_loss",
    "MethodChoice": "icis_deploy.injection.validation.selection",
    "ModelForm": "icis_deploy.bundle.model_form",
    "ModelInput": "icis_deploy.bundle.manifest",
    "ModelSource": "icis_deploy.api.models",
    "MovedClass": "icis_deploy.api.diff",
    "NearestClass": "icis_deploy.api.diff",
    "OpenedModel": "icis_deploy.api.models",
    "ParityReport": "icis_deploy.metrics.parity",
    "Prediction": "icis_deploy.runtime.answers",
    "Preprocessing": "icis_deploy.images.preprocessing",
    "Promise": "icis_deploy.injection.promise",
    "Range": "icis_deploy.injection.estimate.intervals",
    "Rates": "icis_deploy.injection.validation.operating_point",
    "RowCalibration": "icis_deploy.injection.rows.calibration",
    "RowPredictor": "icis_deploy.injection.rows.predictors",
    "Runtime": "icis_deploy.runtime.sessions.choice",
    "SeenLoss": "icis_deploy.metrics.seen_loss",
    "SignedFile": "icis_deploy.updates.signing",
    "SignerURI": "icis_deploy.updates.signers",
    "SigningCommand": "icis_deploy.updates.signers",
    "Skipped": "icis_deploy.metrics.outcomes",
    "TakingClass": "icis_deploy.metrics.seen_loss",
    "Statement": "exporters.stated.statement",
    "TargetOptions": "icis_deploy.bundle.target_options",
    "TradeOffPoint": "icis_deploy.metrics.trade_off",
    "TriedMethod": "icis_deploy.injection.validation.selection",
    "TrustedKeys": "icis_deploy.updates.trusted_keys",
    "UpdateDiff": "icis_deploy.api.diff",
    "WrittenGenerator": "exporters.generator.writing",
    "WrittenReport": "icis_deploy.api.report",
    "accuracy_of_outcomes": "icis_deploy.api.outcomes",
    "add_to_module": "icis_deploy.api.module",
    "ask_tags": "icis_deploy.api.ask_tags",
    "bench": "icis_deploy.api.bench",
    "compact": "icis_deploy.api.compact",
    "compare_methods": "icis_deploy.api.compare",
    "describe": "icis_deploy.api.describe",
    "diff": "icis_deploy.api.diff",
    "errors": "icis_deploy.errors",
    "evaluate": "icis_deploy.api.evaluate",
    "export": "icis_deploy.api.export",
    "export_generator": "icis_deploy.api.generator",
    "inject": "icis_deploy.api.inject",
    "inspect": "icis_deploy.api.models",
    "keygen": "icis_deploy.api.signing",
    "load_bundle": "icis_deploy.bundle.manifest",
    "load_descriptors": "icis_deploy.descriptors.files",
    "load_preprocessing": "icis_deploy.images.preprocessing",
    "load_update": "icis_deploy.updates.envelope",
    "outcomes_of": "icis_deploy.api.outcomes",
    "report": "icis_deploy.api.report",
    "results": "icis_deploy.results",
    "rotate_keys": "icis_deploy.api.signing",
    "save_descriptors": "icis_deploy.descriptors.files",
    "save_update": "icis_deploy.updates.envelope",
    "sign": "icis_deploy.api.signing",
    "sign_bundle": "icis_deploy.api.signing",
    "train_injector": "icis_deploy.api.inject",
    "verify": "icis_deploy.api.verify",
    "verify_bundle": "icis_deploy.api.signing",
    "verify_update": "icis_deploy.api.signing",
}

__all__ = [
    "AccuracyKept",
    "AccuracyReport",
    "AppliedUpdate",
    "ApplyTimings",
    "BackboneSettings",
    "BenchOptions",
    "BlockWeight",
    "BudgetPoint",
    "BuiltTarget",
    "Bundle",
    "ChangedAnswers",
    "ClassUpdate",
    "Collision",
    "ComparedMethod",
    "ComparisonOptions",
    "Crossing",
    "CurvePoint",
    "DescribeOptions",
    "DescriptorBlock",
    "Descriptors",
    "Device",
    "EngineSettings",
    "Estimate",
    "EvaluateOptions",
    "ExportOptions",
    "FileEntry",
    "FollowedState",
    "GateProfile",
    "GeneratorBlock",
    "GeneratorMetadata",
    "GeneratorOptions",
    "Head",
    "HeadLocation",
    "HistoryEntry",
    "ICISDeployError",
    "ICISDeployWarning",
    "Injection",
    "InjectionOptions",
    "Injector",
    "Interval",
    "KeyFile",
    "KeyPair",
    "LanguageModel",
    "Limits",
    "LoadedModel",
    "Logits",
    "LosingClass",
    "MethodChoice",
    "ModelForm",
    "ModelInput",
    "ModelSource",
    "MovedClass",
    "NearestClass",
    "OpenedModel",
    "ParityReport",
    "Prediction",
    "Preprocessing",
    "Promise",
    "Range",
    "Rates",
    "RowCalibration",
    "RowPredictor",
    "Runtime",
    "SeenLoss",
    "SignedFile",
    "SignerURI",
    "SigningCommand",
    "Skipped",
    "Statement",
    "TakingClass",
    "TargetOptions",
    "TradeOffPoint",
    "TriedMethod",
    "TrustedKeys",
    "UpdateDiff",
    "WrittenGenerator",
    "WrittenReport",
    "__version__",
    "accuracy_of_outcomes",
    "add_to_module",
    "ask_tags",
    "bench",
    "compact",
    "compare_methods",
    "describe",
    "diff",
    "errors",
    "evaluate",
    "export",
    "export_generator",
    "inject",
    "inspect",
    "keygen",
    "load_bundle",
    "load_descriptors",
    "load_preprocessing",
    "load_update",
    "outcomes_of",
    "report",
    "results",
    "rotate_keys",
    "save_descriptors",
    "save_update",
    "sign",
    "sign_bundle",
    "train_injector",
    "verify",
    "verify_bundle",
    "verify_update",
]

if not TYPE_CHECKING:  # or type checkers would take every name for one of the module's
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
