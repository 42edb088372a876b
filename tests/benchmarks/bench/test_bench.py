"""The whole benchmark on a tiny model: its figures are those of its parts, and what is missing has a reason."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import icis_deploy
from benchmarks.bench.bench import (
    PRESETS,
    LabeledInputs,
    labeled_inputs,
    measure_correctness,
    open_targets,
    run_bench,
    slot_pairs,
)
from benchmarks.bench.correctness import LogitsBatch, correctness_of, logits_on_features, logits_on_inputs
from benchmarks.bench.labeled_inputs import HeadFeatures, load_labeled
from benchmarks.bench.opened import names_of_bundles, noise
from benchmarks.results.result import parse_result, serialize_result
from benchmarks.results.text import text_of
from icis_deploy.errors import ImageError, IncompatibleError, ModelLoadError, UsageError
from icis_deploy.head.arbiter import deviation_lengths, seen_statistics
from icis_deploy.metrics.accuracy import accuracy_report
from icis_deploy.runtime.device import session_of
from testing.tiny_project import write_tiny_project

FAST = replace(PRESETS["quick"], budget_s=0.1)


def opened(bundles, **options):
    defaults = {"against": str(bundles.project.model), "runtimes": ("onnxruntime",), "num_threads": 1}
    return open_targets([bundles.fused, bundles.updatable], **(defaults | options))


@pytest.fixture(scope="module")
def result(tiny_bundles):
    inputs = labeled_inputs(tiny_bundles.project.images, None)
    with opened(tiny_bundles) as targets:
        return run_bench(targets, preset=FAST, batch_sizes=[1, 4], settings={"preset": "fast"}, inputs=inputs)


def test_every_target_is_measured_with_every_batch_size_against_the_original(result):
    assert [target.name for target in result.targets] == ["original", "fused", "updatable"]
    assert [run.batch_size for run in result.runs] == [1, 4]
    for run in result.runs:
        assert [latency.label for latency in run.measurement.latencies] == ["original", "fused", "updatable"]
        assert [(each.label, each.against) for each in run.measurement.comparisons] == [
            ("fused", "original"),
            ("updatable", "original"),
            ("updatable", "fused"),
        ]


def test_what_slots_cost_is_a_line_of_its_own_beside_the_ratios_to_the_original(result):
    table = text_of(result).split("batch 1 ")[1].split("\n\n")[0]
    rows = {line.split()[0]: line for line in table.splitlines()[1:] if not line.startswith(" ")}
    to_original = result.comparison("updatable", 1)
    to_fused = result.runs[0].measurement.comparisons[2]
    assert to_original.against == "original"
    assert f"{to_original.ratio.value:.3f} (" in rows["updatable"]
    assert f"updatable / fused: {to_fused.ratio.value:.3f} (" in table


def test_slots_are_compared_only_with_a_fused_bundle_that_differs_in_nothing_else(tiny_bundles):
    with opened(tiny_bundles) as targets:
        original, fused, updatable = targets
        assert slot_pairs(targets) == [("updatable", "fused")]
        assert slot_pairs([original, updatable]) == []
        for change in ({"precision": "int8"}, {"runtime": "openvino"}, {"class_names": fused.class_names[:-1]}):
            assert slot_pairs([replace(fused, **change), updatable]) == []


def test_a_target_states_what_it_is_and_what_it_costs_to_start(result, tiny_bundles):
    updatable = result.target("updatable")
    expected = sum((tiny_bundles.updatable / name).stat().st_size for name in ("model.onnx", "slots.safetensors"))

    assert (updatable.num_classes, updatable.num_seen, updatable.capacity) == (46, 40, 16)
    assert (updatable.runtime, updatable.provider, updatable.num_threads) == ("onnxruntime", "CPUExecutionProvider", 1)
    assert updatable.size_bytes == expected
    assert updatable.startup.starts[0].load_ms > 0
    assert updatable.missing == {}
    assert result.target("fused").size_bytes == (tiny_bundles.fused / "model.onnx").stat().st_size


def test_accuracy_is_that_of_evaluate(result, tiny_bundles):
    report = icis_deploy.evaluate(tiny_bundles.fused, images=tiny_bundles.project.images)
    accuracy = result.target("fused").accuracy

    assert (accuracy.T, accuracy.U, accuracy.S, accuracy.H) == (report.T, report.U, report.S, report.H)
    assert accuracy.S_original == report.S_original
    assert [each.name for each in accuracy.classes if not each.is_seen] == list(tiny_bundles.project.unseen_names)
    assert sum(each.num_images for each in accuracy.classes) == 46
    assert accuracy.source == "46 images of images.csv"


def test_the_original_never_recognises_an_unseen_class(result):
    original = result.target("original").accuracy

    assert (original.T, original.U) == (0.0, 0.0)
    assert original.S_original == original.S


def test_both_heads_agree_with_the_original_on_its_classes(result):
    for name in ("fused", "updatable"):
        (parity,) = result.target(name).parity
        assert (parity.against, parity.num_images, parity.num_classes) == ("original", 46, 40)
        assert parity.agreement == 1.0
        assert parity.max_scaled_error < 1e-4
    assert result.target("original").parity == ()


def test_the_result_can_be_written_down(result):
    assert parse_result(serialize_result(result)) == result


def gathered(batches: Iterator[LogitsBatch]) -> dict[str, np.ndarray]:
    """Return all logits of each target."""
    parts = list(batches)
    return {name: np.concatenate([part.logits[name] for part in parts]) for name in parts[0].logits}


def batches_of(logits: dict[str, np.ndarray], labels: list[str], size: int) -> Iterator[LogitsBatch]:
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        yield LogitsBatch(
            logits={name: values[part] for name, values in logits.items()},
            keys=tuple(map(str, range(start, min(start + size, len(labels))))),
            labels=tuple(labels[part]),
        )


def test_any_split_into_batches_gives_the_same_accuracy_and_parity(tiny_bundles):
    random = np.random.default_rng(0)
    with opened(tiny_bundles) as targets:
        names = list(dict.fromkeys(name for target in targets for name in target.class_names))
        labels = [names[index] for index in random.integers(len(names), size=200)]
        logits = {target.name: random.normal(size=(200, len(target.class_names))) for target in targets}
        shown = {"labels": labels, "num_inputs": 200, "source": "x"}
        whole = correctness_of(targets, batches_of(logits, labels, 200), **shown)
        for size in (1, 7, 64):
            assert correctness_of(targets, batches_of(logits, labels, size), **shown) == whole
        first, target = targets[0], targets[-1]

    shared = [target.class_names.index(name) for name in first.class_names]
    errors = np.abs(logits[target.name][:, shared] - logits[first.name]) / logits[first.name].std()
    parity = whole[1][target.name]
    assert parity.max_scaled_error == pytest.approx(errors.max(), rel=1e-12)
    assert parity.p999_scaled_error == pytest.approx(np.percentile(errors, 99.9), rel=1e-12)
    report = accuracy_report(
        logits[target.name],
        [target.class_names.index(label) for label in labels],
        seen=target.num_seen,
        original_logits=logits["original"],
    )
    found = whole[0][target.name]
    assert (found.T, found.U, found.S, found.H) == (report.T, report.U, report.S, report.H)
    assert (found.S_original, found.AUSUC, found.U_top5) == (report.S_original, report.AUSUC, report.top5["U"])


def test_memory_does_not_hold_the_logits_of_all_inputs(tiny_bundles):
    more = tuple(f"more {index}" for index in range(500))
    with opened(tiny_bundles) as of_few:
        bundles = [replace(target, class_names=(*target.class_names, *more)) for target in of_few[1:]]
        targets = [of_few[0], *bundles]
        num_classes = [len(target.class_names) for target in targets]
        label = targets[0].class_names[0]

        def peak(num_batches: int) -> int:
            parts = (
                LogitsBatch(
                    logits={
                        target.name: np.ones((16, count)) for target, count in zip(targets, num_classes, strict=True)
                    },
                    keys=tuple(f"{number}-{index}" for index in range(16)),
                    labels=(label,) * 16,
                )
                for number in range(num_batches)
            )
            tracemalloc.start()
            correctness_of(targets, parts, labels=[label], num_inputs=16 * num_batches, source="x")
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return found

        few, many = peak(10), peak(110)
    assert many - few < 1600 * 8 * sum(num_classes) / 5  # bytes of the logits of 1,600 more inputs


def test_an_input_that_comes_twice_is_refused_with_its_name(tiny_bundles):
    images = load_labeled(tiny_bundles.project.images)
    labeled = replace(images, paths=(*images.paths, images.paths[0]), labels=(*images.labels, images.labels[0]))
    with (
        opened(tiny_bundles) as targets,
        pytest.raises(IncompatibleError, match=rf"1 images come more than once, such as .*{images.paths[0].name}"),
    ):
        measure_correctness(targets, LabeledInputs(labeled=labeled, source="47 images"))


def test_features_give_the_accuracy_of_the_images_they_are_of(tiny_bundles, tmp_path):
    images = load_labeled(tiny_bundles.project.images)
    with opened(tiny_bundles) as targets:
        device = icis_deploy.Device.open(tiny_bundles.updatable)
        features = session_of(device).run(device.prepare(images.paths), with_features=True).features
        np.savez(tmp_path / "features.npz", features=features, labels=np.array(images.labels))
        inputs = labeled_inputs(tmp_path / "features.npz", str(tiny_bundles.project.model))
        by_features = gathered(logits_on_features(targets, inputs.labeled))
        by_images = gathered(logits_on_inputs(targets, images))

    for name, logits in by_images.items():
        np.testing.assert_allclose(by_features[name], logits, rtol=1e-4, atol=1e-4)


def test_features_need_the_model_that_has_the_rows(tiny_bundles, tmp_path):
    np.savez(tmp_path / "features.npz", features=np.ones((1, 24)), labels=np.array(["class00"]))

    with pytest.raises(UsageError, match="Give the model that the bundles were made from as `against`"):
        labeled_inputs(tmp_path / "features.npz", None)


def test_features_of_another_width_are_refused(tiny_bundles, tmp_path):
    np.savez(tmp_path / "features.npz", features=np.ones((1, 23)), labels=np.array(["class00"]))
    inputs = labeled_inputs(tmp_path / "features.npz", str(tiny_bundles.project.model))

    with (
        opened(tiny_bundles) as targets,
        pytest.raises(IncompatibleError, match="are 23 wide; the head's rows multiply 24"),
    ):
        next(logits_on_features(targets, inputs.labeled))


def test_an_image_of_an_unknown_class_is_refused(tiny_bundles):
    images = load_labeled(tiny_bundles.project.images)
    labeled = replace(images, labels=("wombat", *images.labels[1:]))
    inputs = LabeledInputs(labeled=labeled, source="46 images")

    with opened(tiny_bundles) as targets, pytest.raises(ImageError, match="'wombat', which no target knows"):
        run_bench(targets, preset=FAST, batch_sizes=[1], settings={}, inputs=inputs)


def test_a_model_that_is_not_there_is_refused(tiny_bundles):
    for name in ("missing.onnx", "missing.pt2"):
        missing = tiny_bundles.project.model.with_name(name)
        with pytest.raises(ModelLoadError, match=name), opened(tiny_bundles, against=str(missing)):
            pass


def test_a_bundle_can_be_what_the_others_are_compared_with(tiny_bundles):
    with open_targets(
        [tiny_bundles.updatable], against=str(tiny_bundles.fused), runtimes=("onnxruntime", "openvino"), num_threads=1
    ) as targets:
        names = [target.name for target in targets]
        logits = [target.answer(noise(target.model_input, 2)) for target in targets]

    assert names == [
        "fused in onnxruntime",
        "updatable in onnxruntime",
        "fused in openvino",
        "updatable in openvino",
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], rtol=1e-3, atol=1e-3)


def test_bundles_of_other_models_are_not_compared(tiny_bundles, tmp_path):
    other = write_tiny_project(tmp_path / "other", seed=1)
    other.classes.write_text("\n".join(f"thing{index}" for index in range(40)) + "\n")
    icis_deploy.export(other.model, classes=other.classes, out=tmp_path / "bundle")

    with (
        pytest.raises(IncompatibleError, match="made from models with other seen classes"),
        opened(tiny_bundles, against=str(tmp_path / "bundle")),
    ):
        pass


def test_a_model_with_another_head_is_refused(tiny_bundles):
    with (
        pytest.raises(IncompatibleError, match="gives 46 logits; the bundle was made from a model of 40 classes"),
        opened(tiny_bundles, against=str(tiny_bundles.fused / "model.onnx")),
    ):
        pass


def test_names_tell_bundles_apart(tmp_path):
    folders = [tmp_path / "a" / "fp32", tmp_path / "b" / "fp32"]

    assert names_of_bundles(folders) == ["a/fp32", "b/fp32"]
    assert names_of_bundles([tmp_path / "original"]) == [f"{tmp_path.name}/original"]
    with pytest.raises(UsageError, match="given twice"):
        names_of_bundles([folders[0], folders[0]])


def test_what_cannot_be_started_is_left_out_with_its_reason(tiny_bundles):
    with opened(tiny_bundles, against=None) as targets:
        broken = replace(targets[0], factory="no_such_module:anything")
        result = run_bench([broken, targets[1]], preset=FAST, batch_sizes=[1], settings={})

    assert result.target("fused").startup is None
    assert "No module named 'no_such_module'" in result.target("fused").missing["startup"]
    assert result.target("updatable").startup is not None
    assert result.target("updatable").parity[0].source == "seeded noise"
    assert json.loads(serialize_result(result))["targets"][0]["accuracy"] is None


def test_features_measure_rows_with_an_arbiter_as_a_device_answers(tiny_bundles, tmp_path):
    with opened(tiny_bundles) as targets:
        target = targets[-1]
        random = np.random.default_rng(0)
        features = random.normal(size=(5, 24)).astype(np.float32)
        seen_rows = random.normal(size=(target.num_seen, 25)).astype(np.float32)
        inputs = HeadFeatures(features=features, labels=("class00",) * 5, seen_rows=seen_rows)
        coefficients = random.normal(size=(len(target.class_names) - target.num_seen, 5)).astype(np.float32)
        plain = gathered(logits_on_features([target], inputs))[target.name]
        with_arbiter = replace(target, added_arbiter=lambda: coefficients)
        found = gathered(logits_on_features([with_arbiter], inputs))[target.name]

    seen_logits = plain[:, : target.num_seen].astype(np.float32)
    statistics = seen_statistics(features, seen_logits, deviation_lengths(seen_rows))
    np.testing.assert_array_equal(found[:, : target.num_seen], plain[:, : target.num_seen])
    np.testing.assert_allclose(
        found[:, target.num_seen :] - plain[:, target.num_seen :], statistics @ coefficients.T, rtol=1e-4, atol=1e-4
    )
