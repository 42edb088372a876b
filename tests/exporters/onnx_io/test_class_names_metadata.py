"""What a model says of itself stays, and the names that it lists get the new classes."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import icis_deploy
from exporters.onnx_io.class_names_metadata import add_class_names

SEEN = tuple(f"class {index}" for index in range(5))
NEW = ("it's new", "日本")
FORMS = {
    "a Python dictionary, as Ultralytics writes it": repr(dict(enumerate(SEEN))),
    "a Python list": repr(list(SEEN)),
    "a JSON dictionary": json.dumps({str(index): name for index, name in enumerate(SEEN)}),
    "a JSON list": json.dumps(list(SEEN)),
}


def grown(text: str) -> str:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Abs (x) }"""
    )
    model.metadata_props.update({"names": text, "task": "classify"})
    add_class_names(model, NEW, num_seen=5)
    assert model.metadata_props["task"] == "classify"
    return model.metadata_props["names"]


@pytest.mark.parametrize("form", FORMS)
def test_listed_names_go_on_in_their_form(form: str):
    text = grown(FORMS[form])

    listed = json.loads(text) if "JSON" in form else ast.literal_eval(text)
    if isinstance(listed, dict):
        assert [str(key) for key in listed] == [str(index) for index in range(7)]
        assert {type(key) for key in listed} == {str if "JSON" in form else int}
        listed = list(listed.values())
    assert listed == [*SEEN, *NEW]


@pytest.mark.parametrize(
    "text",
    ["{0: 'a'}", "[1, 2", "cat, dog", "{1: 'a', 2: 'b', 3: 'c', 4: 'd', 5: 'e'}", "__import__('os')", ""],
)
def test_names_of_another_head_or_form_stay(text: str):
    assert grown(text) == text


def write(path: Path, *, opset: int, ir_version: int) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [
            numpy_helper.from_array(np.random.default_rng(0).normal(size=size).astype(np.float32), name)
            for name, size in (("w", (5, 4)), ("b", (5,)))
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    if ir_version < 4:
        proto.graph.input.extend(
            helper.make_tensor_value_info(each.name, TensorProto.FLOAT, each.dims) for each in graph.initializer
        )
    proto.producer_name, proto.producer_version, proto.doc_string = "somebody", "1.2", "What it is for."
    proto.domain, proto.model_version = "org.example", 7
    helper.set_model_props(proto, {"author": "A. Uthor", "names": repr(dict(enumerate(SEEN))), "imgsz": "[8, 8]"})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("head", ["fused", "updatable"])
@pytest.mark.parametrize(
    ("opset", "ir_version", "kept"),
    [(17, 8, (17, 8)), (13, 7, (13, 7)), (9, 3, (13, 7)), (11, 6, (13, 6)), (21, 10, (21, 10))],
)
def test_a_bundle_says_what_its_model_said(
    tmp_path: Path, opset: int, ir_version: int, kept: tuple[int, int], head: str, precision: str
):
    path = write(tmp_path / "model.onnx", opset=opset, ir_version=ir_version)
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in SEEN))
    opened = icis_deploy.inspect(path, classes=tmp_path / "classes.txt")
    assert opened.head is not None
    rows = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    update = icis_deploy.ClassUpdate(base_fingerprint=opened.head.fingerprint, rows=rows, added=NEW)
    options = icis_deploy.ExportOptions(
        head=head,
        capacity=4 if head == "updatable" else None,
        form=icis_deploy.ModelForm(precision=precision),
    )

    icis_deploy.export(opened, updates=[update], out=tmp_path / "bundle", options=options)

    exported = onnx.load(tmp_path / "bundle" / "model.onnx")
    said = {each.key: each.value for each in exported.metadata_props}
    assert (exported.producer_name, exported.producer_version) == ("somebody", "1.2")
    assert (exported.doc_string, exported.domain, exported.model_version) == ("What it is for.", "org.example", 7)
    assert (said["author"], said["imgsz"]) == ("A. Uthor", "[8, 8]")
    names = [*SEEN, *NEW] if head == "fused" else [*SEEN]
    assert ast.literal_eval(said["names"]) == dict(enumerate(names))
    assert (exported.opset_import[0].version, exported.ir_version) == kept
