import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import icis_deploy
from icis_deploy.cli.main import run
from icis_deploy.errors import ImageError, IncompatibleError, LoadError, UsageError
from icis_deploy.evaluation.checkpoint import IDENTITY_NAME, ParquetCheckpoint
from icis_deploy.evaluation.measuring import (
    Worker,
    cpu_batch_size,
    default_batch_size,
    measure,
    outcome_head,
    outcomes_of,
    piece_size,
    threads,
)
from icis_deploy.images.loading import load_image_list
from icis_deploy.metrics.outcomes import merge

pytest.importorskip("pyarrow", reason="outcomes are kept in Parquet files: pyarrow is not installed")


@pytest.fixture
def images(tiny_project, tmp_path):
    """A list of the project's images, several times each, under names of their own."""
    listed = load_image_list(tiny_project.images)
    lines = ["file,class"]
    for index in range(60):
        path, label = listed.paths[index % len(listed.paths)], listed.labels[index % len(listed.paths)]
        name = f"{index:03}{path.suffix}"
        shutil.copy(path, tmp_path / name)
        lines.append(f"{name},{label}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "list.csv"


def measured(device, images, workers=1, batch_size=4):
    head = outcome_head(device)
    engine = threads(Worker(device=device, head=head, batch_size=batch_size), workers=workers)
    outcomes, _ = measure(load_image_list(images), engine, piece_size=piece_size(batch_size))
    return outcomes.rows.tobytes()


def evaluated(bundle, images, **options):
    return icis_deploy.evaluate(bundle, images=images, options=icis_deploy.EvaluateOptions(**options))


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (1, 7), (3, 4), (2, 32), (1, 59), (2, 60)])
def test_neither_threads_nor_batches_change_a_byte(bundle, images, workers, batch_size):
    device = icis_deploy.Device.open(bundle)

    assert measured(device, images, workers=workers, batch_size=batch_size) == measured(device, images)


def test_an_input_has_the_same_outcome_alone_and_among_any_number_of_others(bundle, images):
    # ONNX Runtime computes a batch of one by another kernel than the same input among others.
    device = icis_deploy.Device.open(bundle)
    listed, head = load_image_list(images), outcome_head(device)

    def outcome(count):
        names = listed.paths[:count]
        found = outcomes_of(device, names, labels=listed.labels[:count], keys=list(map(str, names)), head=head)
        return found.rows[:1].tobytes()

    assert {outcome(count) for count in (1, 2, 3, 5, 7, 11, 16, 60)} == {outcome(4)}


def test_what_comes_after_an_image_that_is_left_out_has_the_same_outcome(bundle, images):
    device = icis_deploy.Device.open(bundle)
    head, listed = outcome_head(device), load_image_list(images)
    next(images.parent.glob("017.*")).write_bytes(b"no image")
    worker = Worker(device=device, head=head, batch_size=6, on_error="skip")
    kept = [index for index in range(60) if index != 17]
    outcomes, skipped = measure(listed, threads(worker, workers=1), piece_size=piece_size(6))
    without, _ = measure(listed.select(kept), threads(worker, workers=1), piece_size=piece_size(6))

    assert len(skipped) == 1
    assert outcomes.rows.tobytes() == without.rows.tobytes()


@pytest.mark.parametrize(
    ("weight_bytes", "input_shape", "expected"),
    [
        pytest.param(14 << 20, (3, 224, 224), 2, id="MobileNetV2"),
        pytest.param(47 << 20, (3, 224, 224), 8, id="ResNet-18"),
        pytest.param(116 << 20, (3, 224, 224), 16, id="MobileNetV2 with 21,000 classes"),
        pytest.param(1 << 33, (3, 384, 384), 16, id="larger than any cache"),
        pytest.param(1 << 20, (3, 64, 64), 16, id="small images"),
        pytest.param(1 << 10, (12,), 16, id="a row of a table"),
        pytest.param(5 << 20, (3, 1024, 1024), 2, id="large images"),
    ],
)
def test_the_batch_of_a_core_follows_from_the_model_and_its_input(weight_bytes, input_shape, expected):
    assert cpu_batch_size(weight_bytes=weight_bytes, num_values=math.prod(input_shape)) == expected


def test_a_small_model_is_run_on_many_images_at_once(bundle):
    assert default_batch_size(icis_deploy.Device.open(bundle)) == 16


def test_batches_of_another_machine_give_the_same_bytes(bundle, images):
    device = icis_deploy.Device.open(bundle)
    listed, head = load_image_list(images), outcome_head(device)
    parts = [
        outcomes_of(
            icis_deploy.Device.open(bundle),
            listed.paths[start : start + 11],
            labels=listed.labels[start : start + 11],
            keys=[str(path) for path in listed.paths[start : start + 11]],
            head=outcome_head(icis_deploy.Device.open(bundle)),
        )
        for start in (44, 0, 55, 22, 11, 33)
    ]

    assert parts[0].head is not head
    assert merge(parts).rows.tobytes() == measured(device, images)


def test_progress_says_how_many_are_done(bundle, images):
    told = []
    icis_deploy.evaluate(
        bundle,
        images=images,
        options=icis_deploy.EvaluateOptions(batch_size=25, workers=1),
        progress=lambda done, total: told.append((done, total)),
    )

    assert told == [(25, 60), (50, 60), (60, 60)]


def test_an_image_that_cannot_be_read_ends_it_or_is_named_and_left_out(bundle, images):
    broken = images.parent / "017.png"
    whole = next(images.parent.glob("017.*"))
    whole.write_bytes(whole.read_bytes()[:40])
    assert whole == broken

    with pytest.raises(ImageError, match=r"017\.png"):
        evaluated(bundle, images)
    report = evaluated(bundle, images, on_error="skip")

    assert [each.key for each in report.skipped] == [str(broken)]
    assert "017.png" in report.skipped[0].reason
    assert report.num_images == 59
    assert json.loads(json.dumps(report.to_json()))["skipped"][0]["key"] == str(broken)
    without = images.parent / "without.csv"
    without.write_text("".join(line for line in images.read_text().splitlines(True) if "017" not in line))
    assert evaluated(bundle, without).to_json() == {**report.to_json(), "skipped": []}


def test_where_no_image_can_be_read_the_first_reason_is_given(bundle, images):
    for path in images.parent.glob("*.png"):
        path.write_bytes(b"no image")

    with pytest.raises(ImageError, match=r"None of the 60 inputs.*000\.png"):
        evaluated(bundle, images, on_error="skip")


def test_an_image_that_is_listed_twice_is_named(bundle, images):
    with images.open("a") as file:
        file.write(images.read_text().splitlines()[5] + "\n")

    with pytest.raises(IncompatibleError, match="1 images come more than once, such as") as caught:
        evaluated(bundle, images)
    assert caught.value.found.endswith("004.png")


@pytest.mark.parametrize("values", [{"workers": 0}, {"batch_size": 0}, {"on_error": "ignore"}])
def test_options_that_mean_nothing_are_refused(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        icis_deploy.EvaluateOptions(**values)


def test_a_run_with_a_checkpoint_goes_on_where_it_was(bundle, images, tmp_path, monkeypatch):
    monkeypatch.setattr("icis_deploy.evaluation.checkpoint.ROWS_OF_A_FILE", 8)
    monkeypatch.setattr("icis_deploy.evaluation.measuring.INPUTS_OF_A_PIECE", 4)
    plain = evaluated(bundle, images).to_json()
    device = icis_deploy.Device.open(bundle)
    whole, calls = icis_deploy.Device.logits, []

    def ends_after_ten(self, batch):
        calls.append(len(batch))
        if len(calls) == 10:
            raise KeyboardInterrupt
        return whole(self, batch)

    options = icis_deploy.EvaluateOptions(checkpoint=tmp_path / "outcomes", workers=1, batch_size=4)
    monkeypatch.setattr(icis_deploy.Device, "logits", ends_after_ten)
    with pytest.raises(KeyboardInterrupt):
        icis_deploy.evaluate(device, images=images, options=options)
    kept = len(list((tmp_path / "outcomes").glob("*.parquet")))
    again = icis_deploy.evaluate(device, images=images, options=options)

    assert kept == 4
    # Nine batches of four were measured, and two files of them written: the ninth was lost, and is measured again.
    assert sum(calls) == 9 * 4 + 4 + 60 - 32
    assert again.to_json() == plain
    assert icis_deploy.evaluate(device, images=images, options=options).to_json() == plain
    assert len(calls) == 10 + 7


KILLED = """
import sys, os, signal
import icis_deploy
from icis_deploy.evaluation import checkpoint, measuring
checkpoint.ROWS_OF_A_FILE = measuring.INPUTS_OF_A_PIECE = 4
def kill(done, total):
    if done >= 24:
        os.kill(os.getpid(), signal.SIGKILL)
options = icis_deploy.EvaluateOptions(checkpoint=sys.argv[3], workers=2, batch_size=4)
icis_deploy.evaluate(sys.argv[1], images=sys.argv[2], options=options, progress=kill)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_a_killed_run_loses_nothing_but_time(bundle, images, tmp_path):
    folder = tmp_path / "outcomes"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(bundle), str(images), str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(icis_deploy.__file__).parent.parent)},
        check=False,
    )

    assert ended.returncode == -signal.SIGKILL
    assert len(list(folder.glob("outcomes-*.parquet"))) >= 5
    assert evaluated(bundle, images, checkpoint=folder).to_json() == evaluated(bundle, images).to_json()


def test_a_checkpoint_of_another_state_of_the_head_is_refused(bundle, images, tiny_project, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    device = icis_deploy.Device.open(copy)
    options = icis_deploy.EvaluateOptions(checkpoint=tmp_path / "outcomes")
    icis_deploy.evaluate(device, images=images, unseen=tiny_project.unseen_names, options=options)
    device.disable(device.classes()[-2])

    with pytest.raises(IncompatibleError, match=r"holds outcomes of another evaluation: .* is another"):
        icis_deploy.evaluate(device, images=images, unseen=tiny_project.unseen_names, options=options)


def test_a_checkpoint_of_another_list_is_refused(bundle, images, tmp_path):
    evaluated(bundle, images, checkpoint=tmp_path / "outcomes")
    lines = images.read_text().splitlines(True)
    images.write_text("".join(lines[:-1]))

    with pytest.raises(IncompatibleError, match="inputs is another"):
        evaluated(bundle, images, checkpoint=tmp_path / "outcomes")


def test_a_list_that_was_exchanged_under_its_name_is_noticed(bundle, images, tmp_path):
    evaluated(bundle, images, checkpoint=tmp_path / "outcomes")
    shutil.copy(images.parent / "000.png", images.parent / "060.png")
    lines = images.read_text().splitlines()
    lines[-1] = lines[1].replace("000.png", "060.png")
    images.write_text("\n".join(lines) + "\n")

    with pytest.raises(IncompatibleError, match=r"outcomes of 1 inputs that .* does not name"):
        evaluated(bundle, images, checkpoint=tmp_path / "outcomes")


def test_half_a_file_is_named_with_what_to_do(bundle, images, tmp_path):
    evaluated(bundle, images, checkpoint=tmp_path / "outcomes")
    (file,) = (tmp_path / "outcomes").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:300])

    with pytest.raises(LoadError, match=r"outcomes-00000000\.parquet is no whole file.*Remove it"):
        evaluated(bundle, images, checkpoint=tmp_path / "outcomes")
    file.unlink()
    assert evaluated(bundle, images, checkpoint=tmp_path / "outcomes").num_images == 60


def test_an_input_of_two_files_counts_once(bundle, images, tmp_path):
    folder = tmp_path / "outcomes"
    first = evaluated(bundle, images, checkpoint=folder)
    shutil.copy(folder / "outcomes-00000000.parquet", folder / "outcomes-00000001.parquet")

    again = evaluated(bundle, images, checkpoint=folder)

    assert again.num_images == first.num_images == 60
    assert again.to_json() == first.to_json()


@pytest.mark.parametrize("values", [["a"] * 60, [None] * 60, [[1]] * 60])
def test_a_column_of_another_type_is_named_with_what_to_do(bundle, images, tmp_path, values):
    evaluated(bundle, images, checkpoint=tmp_path / "outcomes")
    (file,) = (tmp_path / "outcomes").glob("*.parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    changed = table.set_column(table.schema.get_field_index("label"), "label", pa.array(values))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), file)

    with pytest.raises(LoadError, match=r"no whole file of outcomes: its column 'label' is of .*Remove it"):
        evaluated(bundle, images, checkpoint=tmp_path / "outcomes")


def test_files_of_two_checkpoints_are_not_mixed(bundle, images, tmp_path):
    evaluated(bundle, images, checkpoint=tmp_path / "one")
    other = images.parent / "other.csv"
    other.write_text("".join(images.read_text().splitlines(True)[:31]))
    evaluated(bundle, other, checkpoint=tmp_path / "two")
    shutil.copy(tmp_path / "two" / "outcomes-00000000.parquet", tmp_path / "one" / "outcomes-00000007.parquet")

    with pytest.raises(IncompatibleError, match="outcomes of another evaluation than the rest"):
        evaluated(bundle, images, checkpoint=tmp_path / "one")


def test_outcomes_without_what_was_evaluated_are_refused(bundle, images, tmp_path):
    evaluated(bundle, images, checkpoint=tmp_path / "outcomes")
    (tmp_path / "outcomes" / IDENTITY_NAME).unlink()

    with pytest.raises(IncompatibleError, match=f"no {IDENTITY_NAME}"):
        evaluated(bundle, images, checkpoint=tmp_path / "outcomes")


def test_files_can_be_read_by_others(bundle, images, tmp_path):
    import pandas as pd

    evaluated(bundle, images, checkpoint=tmp_path / "outcomes")
    table = pd.read_parquet(tmp_path / "outcomes" / "outcomes-00000000.parquet")

    assert len(table) == 60
    assert table["key"].iloc[0].decode().endswith("000.png")
    accuracy = (table["label"] == table["answer"]).groupby(table["label"]).mean()
    report = evaluated(bundle, images)
    assert accuracy.to_dict() == pytest.approx(
        {index: value for index, value in enumerate(report.class_accuracy) if value is not None}
    )


def test_a_checkpoint_is_a_folder_that_can_be_written(bundle, images, tmp_path):
    (tmp_path / "file").write_text("")
    device = icis_deploy.Device.open(bundle)

    with pytest.raises(icis_deploy.errors.StorageError, match="Cannot make the folder"):
        ParquetCheckpoint(tmp_path / "file", outcome_head(device), {})


@pytest.fixture
def large_photos(tiny_project, tmp_path):
    """A list of the project's images, four times as large, as JPEG."""
    listed = load_image_list(tiny_project.images)
    lines = ["file,class"]
    for index, (path, label) in enumerate(zip(listed.paths[:12], listed.labels, strict=False)):
        with Image.open(path) as image:
            image.convert("RGB").resize((image.width * 4, image.height * 4)).save(tmp_path / f"{index}.jpg")
        lines.append(f"{index}.jpg,{label}")
    (tmp_path / "large.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "large.csv"


def test_a_reduced_decode_is_stated_with_the_result_and_never_mixed_with_whole_ones(bundle, large_photos, tmp_path):
    whole = evaluated(bundle, large_photos, checkpoint=tmp_path / "whole")
    reduced = evaluated(bundle, large_photos, checkpoint=tmp_path / "reduced", reduced_decode=True)

    assert (whole.reduced_decode, reduced.reduced_decode) == (False, True)
    assert reduced.to_json()["reduced_decode"] is True
    assert "reduced decode" not in json.loads((tmp_path / "whole" / IDENTITY_NAME).read_text())
    for folder, other in (("whole", True), ("reduced", False)):
        with pytest.raises(IncompatibleError, match="holds outcomes of another evaluation: reduced decode is another"):
            evaluated(bundle, large_photos, checkpoint=tmp_path / folder, reduced_decode=other)
    assert evaluated(bundle, large_photos, reduced_decode=True).to_json() == reduced.to_json()


def test_a_reduced_decode_is_refused_where_nothing_is_resized(tiny_project, large_photos, tmp_path, capsys):
    settings = json.loads(tiny_project.preprocess.read_text()) | {"resize": None}
    preprocess = tmp_path / "preprocess.json"
    preprocess.write_text(json.dumps(settings))
    out = tmp_path / "bundle"
    icis_deploy.export(
        tiny_project.model,
        classes=tiny_project.classes,
        out=out,
        options=icis_deploy.ExportOptions(preprocess=preprocess),
    )

    with pytest.raises(UsageError, match=r"part of their size: the bundle's preprocessing has no resize") as raised:
        evaluated(out, large_photos, reduced_decode=True)
    assert raised.value.hint == "Leave `reduced_decode` out."
    assert run(["evaluate", str(out), "--images", str(large_photos), "--reduced-decode"]) == UsageError.exit_code
    assert "Leave --reduced-decode out." in capsys.readouterr().err


def test_the_text_says_that_photos_were_decoded_at_a_part_of_their_size(bundle, large_photos, capsys):
    assert run(["evaluate", str(bundle), "--images", str(large_photos), "--reduced-decode"]) == 0
    assert "JPEG files were decoded at a part of their size" in capsys.readouterr().out
