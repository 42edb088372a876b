"""Option values refuse what makes no sense before anything is read."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing

import numpy as np
import pytest

import icis_deploy
from benchmarks.bench import bench as benchmark
from benchmarks.bench import loadgen
from exporters.targets.registry import ALL_TARGETS, TARGETS, plan_targets
from icis_deploy.api import bench as api_bench
from icis_deploy.api.bench import BenchOptions
from icis_deploy.api.compare import ComparisonOptions
from icis_deploy.api.export import ExportOptions
from icis_deploy.api.generator import GeneratorOptions
from icis_deploy.bundle.target_options import EngineSettings, TargetOptions
from icis_deploy.errors import UsageError
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.predictors.registry import METHODS
from testing.bundles import files_in, make_update, write_bundle


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "baked"}, r"^There is no head 'baked'; choose among fused, updatable\. Give another `head`\.$"),
        ({"trust": ["key.pub"]}, "^A device with a fused head takes no class updates"),
        ({"generator": "generator.onnx"}, "^A device can only be taught classes in slots"),
    ],
)
def test_export_options_refuse_what_a_fused_head_has_no_use_for(options, message):
    with pytest.raises(UsageError, match=message):
        ExportOptions(**options)


def test_export_options_are_values():
    one, other = (
        ExportOptions(head="updatable", capacity=4, trust=trust, targets=targets)
        for trust, targets in ((["a"], ["onnx"]), (("a",), ("onnx",)))
    )

    assert one == other
    assert hash(one) == hash(other)


def test_export_options_name_every_target():
    assert all(f"`{name}`" in source_of_field("targets") for name in ("onnx", *TARGETS, ALL_TARGETS))


def source_of_field(name: str) -> str:
    return inspect.getsource(ExportOptions).partition(f"    {name}: ")[2].split('"""')[1]


def test_batches_of_an_engine_that_are_not_in_order_are_refused():
    with pytest.raises(
        UsageError, match=r"^The batches 1, 8, 4 are not in order: expected 1 <= min_batch <= opt_batch"
    ):
        EngineSettings(opt_batch=8, max_batch=4)


@pytest.mark.parametrize(("settings", "chosen"), [({}, False), ({"refit": True}, False), ({"max_batch": 8}, True)])
def test_only_batches_make_batches_chosen(settings, chosen):
    assert TargetOptions(engine=EngineSettings(**settings)).engine.batches_were_chosen == chosen


def test_a_generator_in_a_precision_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"^There is no precision 'int8'; choose among fp32, fp16\. Give another"):
        GeneratorOptions(precision="int8")


def test_a_comparison_gives_each_method_the_same_options():
    options = ComparisonOptions(methods=["ridge", "mean"], balance=0.6, seen_accuracy=0.8, seed=3)

    assert options.by_method() == {
        name: InjectionOptions(method=name, balance=0.6, seen_accuracy=0.8, seed=3) for name in ("ridge", "mean")
    }


def test_a_comparison_is_of_all_methods_by_default():
    assert list(ComparisonOptions().by_method()) == ["auto", *METHODS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, r"^There is no method to compare; name at least one\.$"),
        ({"methods": ("ridge", "magic")}, "^There is no method 'magic'"),
        ({"seen_accuracy": 76}, "^The seen accuracy is 76"),
    ],
)
def test_comparisons_of_nothing_that_is_there_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ComparisonOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, r"^There is no preset 'slow'; choose among quick, normal, submission\."),
        ({"runtimes": ["onnxruntime", "magic"]}, "^There is no runtime 'magic'; choose among onnxruntime, "),
        ({"scenarios": ["storm"]}, "^There is no scenario 'storm'; choose among single-stream, "),
        ({"batch_sizes": []}, r"^The batch sizes are \(\); expected at least one, each "),
        ({"batch_sizes": [8, 0]}, r"^The batch sizes are \(0, 8\); expected at least one, each "),
        ({"max_seconds": float("nan")}, "^nan seconds were asked for; expected a positive number"),
        ({"num_threads": 0}, "^0 threads were asked for; expected a positive number"),
    ],
)
def test_bench_options_refuse_what_cannot_be_measured(options, message):
    with pytest.raises(UsageError, match=message):
        BenchOptions(**options)


def test_bench_options_measure_each_thing_once_in_order():
    options = BenchOptions(batch_sizes=[8, 1, 8], runtimes=["openvino", "onnxruntime", "openvino"])

    assert (options.batch_sizes, options.runtimes) == ((1, 8), ("openvino", "onnxruntime"))


def test_bench_options_know_the_presets_and_loads_that_there_are():
    assert tuple(benchmark.PRESETS) == api_bench.PRESET_NAMES == typing.get_args(api_bench.PresetName)
    assert loadgen.SCENARIOS == api_bench.LOADGEN_SCENARIOS
    assert (*loadgen.SCENARIOS, benchmark.CLASS_SWAP) == typing.get_args(api_bench.ScenarioName)


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(UsageError, match="expected a whole number that is not negative"):
        InjectionOptions(seed=seed)


def test_options_in_a_dict_are_refused_by_the_name_of_what_is_expected(tiny_project):
    with pytest.raises(UsageError, match=r"are of type dict; expected InjectionOptions\. Give options=Inj"):
        icis_deploy.inject(tiny_project.model, descriptors=tiny_project.descriptors, options={"method": "ridge"})


def test_one_update_in_place_of_a_list_is_said_to_be_one(tiny_project, tmp_path):
    with pytest.raises(UsageError, match=r"`updates` is one class update; expected a list"):
        icis_deploy.export(tiny_project.model, updates="new.icis", out=tmp_path / "bundle")


def test_a_set_of_class_names_is_refused_as_it_has_no_order(tiny_project):
    with pytest.raises(UsageError, match="which has no order"):
        icis_deploy.inspect(tiny_project.model, classes=set(tiny_project.seen_names))


@pytest.mark.parametrize("value", ["3", 2.5, True], ids=["text", "fraction", "truth"])
def test_a_count_that_is_no_whole_number_is_refused_by_the_name_of_its_parameter(value, tmp_path):
    with pytest.raises(UsageError, match=r"^`capacity` is .*, of type .*; expected a whole number\."):
        icis_deploy.ExportOptions(head="updatable", capacity=value)
    with pytest.raises(UsageError, match=r"^`top` is .*; expected a whole number\."):
        icis_deploy.ModelForm(top=value)
    with pytest.raises(UsageError, match=r"^`capacity` is .*; expected a whole number\."):
        icis_deploy.compact(tmp_path / "bundle", out=tmp_path / "compacted", capacity=value)


def test_counts_of_numpys_types_are_whole_numbers():
    options = icis_deploy.ExportOptions(
        head="updatable", capacity=np.int64(4), form=icis_deploy.ModelForm(top=np.int32(3))
    )

    assert (type(options.capacity), type(options.form.top)) == (int, int)


def test_a_share_as_text_is_refused_by_the_name_of_its_parameter(tmp_path):
    with pytest.raises(UsageError, match=r"^`max_seen_loss` is '0.02', of type str; expected a number\."):
        icis_deploy.verify(tmp_path, against="model.onnx", max_seen_loss="0.02")
    with pytest.raises(UsageError, match=r"^`max_changed_answers` is '5'"):
        icis_deploy.ExportOptions(head="updatable", max_changed_answers="5")


@pytest.mark.parametrize("value", ["2", [0.5], None])
@pytest.mark.parametrize("name", ["max_seen_loss", "balance", "seen_accuracy"])
def test_a_fraction_that_is_no_number_is_refused_by_what_was_given(name, value):
    if value is None:
        assert getattr(InjectionOptions(**{name: None}), name) in {None, 0.02}
        return
    with pytest.raises(UsageError, match=rf" is {re.escape(repr(value))}; expected a .* Give .*`{name}`"):
        InjectionOptions(**{name: value})


@pytest.mark.parametrize("value", [None, 3, b"x", ["x"]], ids=["none", "number", "bytes", "list"])
def test_what_is_no_path_is_named_with_its_parameter(value, tmp_path):
    update = make_update("ibis")
    descriptors = icis_deploy.Descriptors(values=[[1, 0], [0, 1]], class_names=("cat", "dog"))
    for name, call in {
        "folder": icis_deploy.Device.open,
        "path": icis_deploy.load_update,
        "update": lambda given: icis_deploy.verify_update(given, trust=[]),
        "bundle": lambda given: icis_deploy.verify_bundle(given, trust=[]),
        "out": icis_deploy.keygen,
    }.items():
        with pytest.raises(
            UsageError, match=rf"^`{name}` is .*, of type '{type(value).__name__}'; expected a path\. Give"
        ):
            call(value)
    for call in (
        icis_deploy.load_bundle,
        icis_deploy.load_descriptors,
        icis_deploy.load_preprocessing,
        lambda given: icis_deploy.save_update(update, given),
        lambda given: icis_deploy.save_descriptors(descriptors, given),
    ):
        with pytest.raises(UsageError, match="expected a path"):
            call(value)
    with pytest.raises(UsageError, match="expected a ClassUpdate"):
        icis_deploy.save_update(value, tmp_path / "new.icis")
    with pytest.raises(UsageError, match="expected Descriptors"):
        icis_deploy.save_descriptors(value, tmp_path / "new.npz")
    assert not list(tmp_path.iterdir())


def test_a_runtime_and_a_number_of_classes_of_another_type_are_refused(tmp_path):
    device = icis_deploy.Device.open(write_bundle(tmp_path / "bundle"))
    batch = np.zeros((1, *device.bundle.model_input.shape), dtype=device.bundle.model_input.dtype)
    for top in ("3", 1.5, None, 0, [1]):
        with pytest.raises(UsageError, match=r"^top is .*; at least one class must be asked for, by a whole number"):
            device.predict(batch, top=top)
    assert device.predict(batch, top=np.int64(2)) == device.predict(batch, top=2)
    with pytest.raises(UsageError, match="The runtime is of type 'int'"):
        icis_deploy.Device.open(tmp_path / "bundle", runtime=3)


COUNTS = [
    (icis_deploy.EvaluateOptions, "workers"),
    (icis_deploy.EvaluateOptions, "batch_size"),
    (icis_deploy.BenchOptions, "num_threads"),
    (icis_deploy.Runtime, "num_threads"),
    (icis_deploy.EngineSettings, "max_batch"),
    (icis_deploy.BackboneSettings, "opset"),
]


@pytest.mark.parametrize("value", ["2", b"x", [2]], ids=["text", "bytes", "list"])
@pytest.mark.parametrize(("options", "name"), COUNTS, ids=lambda each: each if isinstance(each, str) else each.__name__)
def test_every_count_of_another_type_is_refused_by_the_name_of_its_parameter(options, name, value):
    with pytest.raises(
        UsageError, match=rf"^`{name}` is .*, of type {type(value).__name__}; expected a .*number\. Give"
    ):
        options(**{name: value})


LISTS = [
    (icis_deploy.ComparisonOptions, "methods"),
    (icis_deploy.BenchOptions, "batch_sizes"),
    (icis_deploy.BenchOptions, "runtimes"),
    (icis_deploy.BenchOptions, "scenarios"),
    (icis_deploy.ExportOptions, "targets"),
    (lambda **given: icis_deploy.SigningCommand(public_key="KEY.pub", **given), "command"),
]


@pytest.mark.parametrize("value", [3, None, "onnx"], ids=["number", "none", "text"])
@pytest.mark.parametrize(("options", "name"), LISTS, ids=lambda each: each if isinstance(each, str) else "")
def test_what_is_no_list_is_refused_by_the_name_of_its_parameter(options, name, value):
    with pytest.raises(UsageError, match=rf"^`{name}` is .*, of type .*; expected a list of .*\. Give `{name}`"):
        options(**{name: value})


@pytest.mark.parametrize(
    ("options", "name", "word", "meant"),
    [
        (icis_deploy.ModelForm, "precision", "int-8", "int8"),
        (icis_deploy.ModelForm, "head_precision", "fp_16", "fp16"),
        (icis_deploy.GeneratorOptions, "precision", "f16", "fp16"),
        (icis_deploy.InjectionOptions, "method", "rigde", "ridge"),
        (icis_deploy.InjectionOptions, "calibration", "lenght", "length"),
        (icis_deploy.ExportOptions, "head", "updateable", "updatable"),
        (icis_deploy.EvaluateOptions, "engine", "locale", "local"),
        (icis_deploy.EvaluateOptions, "on_error", "skips", "skip"),
        (icis_deploy.BenchOptions, "preset", "quik", "quick"),
        (icis_deploy.Runtime, "name", "openvion", "openvino"),
    ],
)
def test_a_word_that_is_misspelt_is_refused_with_the_one_that_was_meant(options, name, word, meant):
    with pytest.raises(UsageError, match=rf"^There is no .* '{word}'; choose among .* Did you mean '{meant}'\? Give"):
        options(**{name: word})
    with pytest.raises(UsageError, match=r"^There is no .* \['.*'\]; choose among "):
        options(**{name: [meant]})


def test_a_misspelt_target_is_refused_with_the_one_that_was_meant():
    with pytest.raises(UsageError, match=r"Did you mean 'openvino'\? Give another `targets`"):
        plan_targets(["opnevino"])


@pytest.mark.parametrize("value", [3, b"x", "", "a\0b"], ids=["number", "bytes", "empty", "null"])
def test_what_no_file_can_have_as_its_path_is_refused_by_the_name_of_its_parameter(value, tiny_project, tmp_path):
    opened = icis_deploy.inspect(tiny_project.model, classes=tiny_project.classes)
    described = icis_deploy.load_descriptors(tiny_project.descriptors)
    model = icis_deploy.LanguageModel(base_url="http://127.0.0.1:9/v1", name="none")
    icis_deploy.save_update(make_update("okapi"), tmp_path / "new.icis")
    for name, call in {
        "out": lambda: icis_deploy.export(opened, out=value),
        "generator": lambda: icis_deploy.ExportOptions(head="updatable", generator=value),
        "trust": lambda: icis_deploy.ExportOptions(head="updatable", trust=[value]),
        "checkpoint": lambda: icis_deploy.EvaluateOptions(checkpoint=value),
        "logs": lambda: icis_deploy.BenchOptions(logs=value),
        "bundles": lambda: icis_deploy.bench([value]),
        "baseline": lambda: icis_deploy.bench([tmp_path], baseline=value),
        "against": lambda: icis_deploy.bench([tmp_path], against=value),
        "results": lambda: icis_deploy.report([value], out=tmp_path / "report.html"),
        "markdown": lambda: icis_deploy.report([], markdown=value),
        "vectors": lambda: icis_deploy.describe(["okapi", "zebra"], vectors=value),
        "model": lambda: icis_deploy.describe(["okapi", "zebra"], model=value),
        "folder": lambda: icis_deploy.ask_tags(["okapi"], model, folder=value),
        "path": lambda: icis_deploy.results.load_result(value),
        "weights": lambda: icis_deploy.inspect(icis_deploy.ModelSource(spec="torch:nn", weights=value)),
        "key": lambda: icis_deploy.sign(tmp_path / "new.icis", key=value, version=1),
    }.items():
        with pytest.raises(UsageError, match=rf"^`{name}` is .*; expected a path"):
            call()
    with pytest.raises(UsageError, match=r"^`out` is .*; expected a path"):
        icis_deploy.export_generator(opened, descriptors=described, out=value)
    assert [each.name for each in tmp_path.iterdir()] == ["new.icis"]


@pytest.mark.parametrize("value", [3, b"x", None], ids=["number", "bytes", "none"])
def test_what_is_no_value_of_a_parameter_is_refused_by_its_name(value, tmp_path):
    device = icis_deploy.Device.open(write_bundle(tmp_path / "bundle"))
    for name, call in {
        "classes": lambda: icis_deploy.describe(value),
        "model": lambda: icis_deploy.ask_tags(["okapi"], value, folder=tmp_path),
        "device": lambda: icis_deploy.outcomes_of(value, {}),
        "batch": lambda: icis_deploy.outcomes_of(device, value),
        "tables": lambda: icis_deploy.accuracy_of_outcomes(device, value),
        "results": lambda: icis_deploy.report(value, out=tmp_path / "report.html"),
        "version": lambda: icis_deploy.rotate_keys([], key="KEY", version=str(value), out=tmp_path / "set.icis"),
        "expires": lambda: icis_deploy.sign(tmp_path / "new.icis", key="KEY", expires=value or "2030-01-01"),
        "progress": lambda: icis_deploy.evaluate(device, images=[], progress=value or "yes"),
    }.items():
        with pytest.raises(UsageError, match=rf"^`{name}` is .*, of type .*; expected "):
            call()


def test_a_passphrase_of_another_type_is_refused_and_not_shown(tmp_path):
    with pytest.raises(UsageError, match=r"^`passphrase` is of type bytes; expected a text\.") as refused:
        icis_deploy.keygen(tmp_path / "KEY", passphrase=b"very secret")
    assert "secret" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["", ".onnx", ".pt2"])
def test_a_name_that_no_file_system_takes_is_refused_as_a_file_that_is_not_there(suffix, tiny_project, tmp_path):
    text = 300 * "x" + suffix
    opened = icis_deploy.inspect(tiny_project.model, classes=tiny_project.classes)
    model = icis_deploy.LanguageModel(base_url="http://127.0.0.1:9/v1", name="none")
    for call in (
        lambda: icis_deploy.inspect(text),
        lambda: icis_deploy.inspect(icis_deploy.ModelSource(spec="torch.nn:Identity", weights=text)),
        lambda: icis_deploy.compare_methods(opened, descriptors=tiny_project.descriptors, images=text),
        lambda: icis_deploy.diff(text, text),
        lambda: icis_deploy.sign(tmp_path / "new.icis", key="KEY", bundle=text),
        lambda: icis_deploy.ask_tags(["okapi"], model, folder=tmp_path / text),
    ):
        with pytest.raises(icis_deploy.ICISDeployError):
            call()


@pytest.mark.parametrize("shape", [3, "3,16,16", (3, 0, 16), ("3", 16, 16)], ids=["number", "text", "zero", "texts"])
def test_an_input_shape_that_is_none_is_refused(shape, tiny_project):
    with pytest.raises(UsageError, match=r"^`input_shape` is .*; expected "):
        icis_deploy.inspect(icis_deploy.ModelSource(spec=tiny_project.model, input_shape=shape))


@pytest.mark.parametrize("value", ["no", None, 0], ids=["text", "none", "number"])
def test_what_is_neither_true_nor_false_is_refused_by_the_name_of_its_parameter(value, tiny_project, tmp_path):
    device = icis_deploy.Device.open(write_bundle(tmp_path / "bundle"))
    before = files_in(tmp_path)
    for name, call in {
        "skip_unreadable": lambda: InjectionOptions(skip_unreadable=value),
        "reduced_decode": lambda: icis_deploy.EvaluateOptions(reduced_decode=value),
        "replace": lambda: icis_deploy.DescribeOptions(replace=value),
        "refit": lambda: EngineSettings(refit=value),
        "cuda_graph": lambda: icis_deploy.Runtime(name="tensorrt", cuda_graph=value),
        "strict": lambda: icis_deploy.inject(tiny_project.model, strict=value),
        "overwrite": lambda: icis_deploy.export(tiny_project.model, out=tmp_path / "bundle", overwrite=value),
        "any_machine": lambda: icis_deploy.bench([tmp_path / "bundle"], any_machine=value),
        "force": lambda: icis_deploy.sign(tmp_path / "new.icis", key="KEY", force=value),
        "complete": lambda: icis_deploy.sign(tmp_path / "new.icis", key="KEY", complete=value),
        "allow_unsigned": lambda: device.apply(make_update("okapi"), allow_unsigned=value),
        "allow_changed_answers": lambda: device.apply(make_update("okapi"), allow_changed_answers=value),
        "allow_revoked": lambda: device.rollback(allow_revoked=value),
    }.items():
        with pytest.raises(UsageError, match=rf"^`{name}` is .*, of type .*; expected True or False\. Give"):
            call()
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (icis_deploy.ExportOptions, "form"),
        (icis_deploy.ExportOptions, "target_options"),
        (TargetOptions, "engine"),
        (TargetOptions, "backbone"),
        (GeneratorOptions, "injection"),
    ],
)
def test_options_within_options_are_no_dict(options, name):
    with pytest.raises(UsageError, match=rf"^`{name}` is {{'top': 3}}, of type dict; expected .*\(\.\.\.\)\. Give"):
        options(**{name: {"top": 3}})


def test_one_template_in_place_of_a_list_is_refused():
    with pytest.raises(UsageError, match=r"^`templates` is 'a photo of a {}', of type str; expected a list of prompts"):
        icis_deploy.DescribeOptions(templates="a photo of a {}")


def test_an_empty_text_is_no_folder_to_look_into(tiny_project, tmp_path, monkeypatch):
    """Python takes it for the folder that it runs in, which may hold a model, or images."""
    device = icis_deploy.Device.open(write_bundle(tmp_path / "bundle"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(icis_deploy.errors.ModelLoadError, match=r"^'' is no model that can be loaded: found an empty"):
        icis_deploy.inspect("")
    with pytest.raises(UsageError, match=r"^`images` is ''; expected a path"):
        icis_deploy.evaluate(device, images="")
    with pytest.raises(UsageError, match=r"^`images` is ''; expected a path"):
        device.predict([""])


def test_the_greatest_seed_is_taken_and_one_above_it_refused(tiny_project, tmp_path):
    options = InjectionOptions(method="icis", calibration="length", seed=(1 << 63) - 1)
    opened = icis_deploy.inspect(tiny_project.model, classes=tiny_project.classes)
    update = icis_deploy.inject(opened, descriptors=tiny_project.descriptors, options=options)
    icis_deploy.save_update(update, tmp_path / "new.icis")

    assert icis_deploy.load_update(tmp_path / "new.icis").self_test_seed == options.seed
    with pytest.raises(UsageError, match=r"^The seed is .*, and at most 2\^63 - 1\. Give another `seed`\.$"):
        InjectionOptions(seed=1 << 63)


@pytest.mark.parametrize("value", [3, None, "okapi"], ids=["number", "none", "text"])
def test_values_that_list_classes_take_no_lone_text_or_number(value):
    update = make_update("okapi")
    for name, call in {
        "class_names": lambda: icis_deploy.Head(rows=np.zeros((5, 2)), class_names=value),
        "added": lambda: dataclasses.replace(update, added=value),
        "removed": lambda: dataclasses.replace(update, removed=value),
        "targets": lambda: dataclasses.replace(update, targets=value),
    }.items():
        with pytest.raises(UsageError, match=rf"^`{name}` is .*; expected a list of"):
            call()
    with pytest.raises(UsageError, match=r"^`class_names` is .*; expected a list of names"):
        icis_deploy.Descriptors(values=np.ones((5, 2)), class_names=value)


@pytest.mark.parametrize(
    ("name", "value"), [("version", "3"), ("version", None), ("self_test_seed", 1.5), ("expires", "2030-01-01")]
)
def test_a_class_update_takes_no_version_seed_or_time_of_another_type(name, value):
    with pytest.raises(UsageError, match=rf"^`{name}` is .*, of type .*; expected a "):
        dataclasses.replace(make_update("okapi"), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("mean", "abc"), ("mean", None), ("std", [1, None, 1]), ("std", 10**400), ("rescale", "1"), ("rescale", 10**400)],
    ids=["text", "none", "a none", "huge", "rescale text", "rescale huge"],
)
def test_a_preprocessing_takes_no_statistics_of_another_type(name, value):
    given = {"resize": 2, "crop": 2, "mean": 0.5, "std": 0.5} | {name: value}
    with pytest.raises(icis_deploy.errors.IncompatibleError, match=rf"^Preprocessing has {name} .*; expected a "):
        icis_deploy.Preprocessing(**given)
