"""Write classifiers as the tools of other people write them, for `graphs.py`: small ones, with random weights.

    python graph_sources.py SOURCE FOLDER

SOURCE is one of `torch`, `transformers`, `quantization`, `onnx`, `sklearn`, `tensorflow`, `paddle` and `jax`. The last
four need tools whose pins contradict this project's: run this file with an environment of their own (`pip install
scikit-learn skl2onnx`; `tensorflow-cpu tf2onnx`; `paddlepaddle paddle2onnx packaging setuptools`; `jax2onnx flax`). It
needs nothing else of this project. Files are called `producer--head.onnx`. Calibrated ones are calibrated on
`FOLDER/images.npy`, which `graphs.py --write-images FOLDER` writes.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

NUM_CLASSES, WIDTH, SIDE = 10, 16, 16
RNG = np.random.default_rng(0)


def module(name: str) -> Any:
    """Import a tool that is installed in its own environment alone."""
    return importlib.import_module(name)


def normal(*shape: int) -> Any:
    """Return random weights, float32."""
    return RNG.normal(size=shape).astype(np.float32)


def write_torch(folder: Path) -> None:
    """Write with PyTorch's TorchScript exporter, and the one on torch.export."""
    torch: Any = module("torch")
    nn, functional = torch.nn, torch.nn.functional
    torch.manual_seed(0)

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, head: str) -> None:
            super().__init__()
            self.head = head
            self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU())
            self.linear = nn.Linear(WIDTH, NUM_CLASSES, bias=head != "no bias")
            self.conv = nn.Conv2d(WIDTH, NUM_CLASSES, 1)
            self.weight = nn.Parameter(torch.randn(NUM_CLASSES, WIDTH))

        def forward(self, image: Any) -> Any:  # noqa: PLR0911 - a head each
            maps = self.body(image)
            if self.head == "conv, then mean":
                return self.conv(maps).mean((2, 3))
            if self.head == "conv, ReLU, then mean":
                return functional.relu(self.conv(maps)).mean((2, 3))
            features = maps.mean((2, 3))
            if self.head == "cosine":
                return 8 * functional.linear(functional.normalize(features), functional.normalize(self.weight))
            scores = self.linear(features)
            if self.head == "softmax":
                return scores.softmax(1)
            if self.head == "sigmoid":
                return scores.sigmoid()
            if self.head == "scores, ids and features":
                return scores, scores.argmax(1), features
            return scores

    heads = ("linear", "no bias", "conv, then mean", "conv, ReLU, then mean", "cosine", "softmax", "sigmoid")
    for head in (*heads, "scores, ids and features"):
        net, example = Net(head).eval(), torch.zeros(2, 3, SIDE, SIDE)
        torch.onnx.export(
            net,
            (example,),
            folder / f"torch, TorchScript--{head}.onnx",
            dynamo=False,
            input_names=["image"],
            dynamic_axes={"image": {0: "n"}},
            opset_version=17,
        )
        torch.onnx.export(
            net,
            (example,),
            folder / f"torch, torch.export--{head}.onnx",
            dynamo=True,
            dynamic_shapes=({0: "n"},),
            external_data=False,
        )
    net = Net("linear").train()
    training = torch.onnx.TrainingMode.TRAINING
    torch.onnx.export(
        net, (example,), folder / "torch, TorchScript--in training mode.onnx", dynamo=False, training=training
    )


def write_transformers(folder: Path) -> None:
    """Architectures of transformers, random weights, by torch's TorchScript exporter."""
    torch: Any = module("torch")
    transformers: Any = module("transformers")
    torch.manual_seed(0)

    class ScoresOnly(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> Any:
            return self.model(image).logits

    small = {"num_labels": NUM_CLASSES, "image_size": 32}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    configs = {
        "ViT": transformers.ViTConfig(**small, **layers, patch_size=8),
        "DeiT": transformers.DeiTConfig(**small, **layers, patch_size=8),
        "BEiT": transformers.BeitConfig(**small, **layers, patch_size=8),
        "ResNet": transformers.ResNetConfig(
            num_labels=NUM_CLASSES, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
        ),
        "ConvNeXt": transformers.ConvNextConfig(**small, hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1]),
        "MobileNetV2": transformers.MobileNetV2Config(**small, depth_multiplier=0.25),
        "Swin": transformers.SwinConfig(
            **small, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
    }
    for name, config in configs.items():
        called = type(config).__name__.removesuffix("Config") + "ForImageClassification"
        config._attn_implementation = "eager"
        model = getattr(transformers, called)(config).eval()
        try:
            torch.onnx.export(
                ScoresOnly(model),
                (torch.zeros(1, 3, 32, 32),),
                folder / f"transformers, TorchScript--{name}.onnx",
                dynamo=False,
                input_names=["image"],
                opset_version=17,
            )
        except Exception as error:  # torch's own types
            print(f"{name}: {error}", file=sys.stderr)


def float_classifier(head: str, *, softmax: bool = False, relu: bool = False) -> Any:
    """Return a small classifier of ONNX's own operators."""
    onnx: Any = module("onnx")
    make = onnx.helper.make_node
    constants = {"cw": 0.3 * normal(WIDTH, 3, 3, 3), "cb": 0.1 * normal(WIDTH)}
    constants |= {"w": normal(NUM_CLASSES, WIDTH), "b": normal(NUM_CLASSES)}
    nodes = [make("Conv", ["image", "cw", "cb"], ["c"]), make("Relu", ["c"], ["r"])]
    logits = "logits"
    if relu:
        constants["w"] = constants["w"][:, :, None, None]
        nodes += [make("Conv", ["r", "w", "b"], ["z"]), make("Relu", ["z"], ["zr"])]
        nodes += [make("GlobalAveragePool", ["zr"], ["p"]), make("Flatten", ["p"], [logits])]
    else:
        nodes.append(make("GlobalAveragePool", ["r"], ["p"]))
        if head == "conv":
            constants["w"] = constants["w"][:, :, None, None]
            nodes += [make("Conv", ["p", "w", "b"], ["z"]), make("Flatten", ["z"], [logits])]
        elif head == "matmul":
            constants["w"] = np.ascontiguousarray(constants["w"].T)
            nodes += [make("Flatten", ["p"], ["f"]), make("MatMul", ["f", "w"], ["m"])]
            nodes.append(make("Add", ["m", "b"], [logits]))
        else:
            nodes += [make("Flatten", ["p"], ["f"]), make("Gemm", ["f", "w", "b"], [logits], transB=1)]
    if softmax:
        nodes.append(make("Softmax", [logits], ["scores"], axis=1))
    return classifier_of(nodes, constants, {"scores" if softmax else logits: (1, ["n", NUM_CLASSES])})


def classifier_of(
    nodes: list[Any],
    constants: dict[str, Any],
    outputs: dict[str, tuple[Any, Any]],
    *,
    taken: int = 1,
    ml: bool = False,
) -> Any:
    """Return a classifier of these nodes, constants and outputs."""
    onnx: Any = module("onnx")
    helper = onnx.helper
    for index, node in enumerate(nodes):
        node.name = node.name or f"node {index}"
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", taken, ["n", 3, SIDE, SIDE])],
        [
            helper.make_value_info(name, dtype) if shape is None else helper.make_tensor_value_info(name, dtype, shape)
            for name, (dtype, shape) in outputs.items()
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid("ai.onnx.ml", 3)] if ml else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def write_quantization(folder: Path) -> None:
    """What onnxruntime.quantization makes of a float classifier."""
    quantization: Any = module("onnxruntime.quantization")
    images = 2 * np.load(folder / "images.npy") - 1

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.rest = iter([{"image": images}])

        def get_next(self) -> Any:
            return next(self.rest, None)

    kinds = quantization.QuantType
    forms: dict[str, dict[str, Any]] = {
        "QDQ": {"quant_format": quantization.QuantFormat.QDQ},
        "QOperator": {"quant_format": quantization.QuantFormat.QOperator},
        "com.microsoft QDQ, 16 bits": {
            "activation_type": kinds.QUInt16,
            "extra_options": {"UseQDQContribOps": True},
        },
    }
    for head in ("gemm", "matmul", "conv"):
        for softmax in (False, True):
            with tempfile.TemporaryDirectory() as work:
                path = Path(work) / "float.onnx"
                path.write_bytes(float_classifier(head, softmax=softmax).SerializeToString())
                called = f"{head}{', softmax' if softmax else ''}"
                for form, settings in forms.items():
                    chosen = {"activation_type": kinds.QUInt8, "weight_type": kinds.QInt8, **settings}
                    out = folder / f"onnxruntime.quantization, {form}--{called}.onnx"
                    quantization.quantize_static(str(path), str(out), Reader(), **chosen)
                if head == "gemm" and not softmax:
                    out = folder / f"onnxruntime.quantization, dynamic--{called}.onnx"
                    quantization.quantize_dynamic(str(path), str(out))


def write_onnx(folder: Path) -> None:
    """Graphs as converters of other tools write them, node by node."""
    onnx: Any = module("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    make = helper.make_node
    scores = {"logits": (1, ["n", NUM_CLASSES])}
    names = [f"name {index}" for index in range(NUM_CLASSES)]
    table = np.array(names, dtype=object)
    body = [make("Conv", ["image", "cw"], ["c"]), make("Relu", ["c"], ["r"]), make("GlobalAveragePool", ["r"], ["p"])]
    body += [make("Flatten", ["p"], ["f"]), make("Gemm", ["f", "w"], ["logits"], name="head", transB=1)]
    constants = {"cw": 0.3 * normal(WIDTH, 3, 3, 3), "w": normal(NUM_CLASSES, WIDTH)}
    best = make("ArgMax", ["logits"], ["best"], axis=1, keepdims=0)
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(types.STRING, helper.make_tensor_type_proto(types.FLOAT, []))
    )
    encode = make(
        "LabelEncoder", ["best"], ["label"], domain="ai.onnx.ml", keys_int64s=range(NUM_CLASSES), values_strings=names
    )
    label = scores | {"label": (types.STRING, ["n"])}
    written = {
        "labels by LabelEncoder": ([*body, best, encode], constants, label, {"ml": True}),
        "labels by Gather": (
            [*body, best, make("Gather", ["t", "best"], ["label"])],
            constants | {"t": table},
            label,
            {},
        ),
        "numbers by Gather": (
            [*body, best, make("Gather", ["t", "best"], ["label"])],
            constants | {"t": np.arange(100, 100 + NUM_CLASSES)},
            scores | {"label": (types.INT64, ["n"])},
            {},
        ),
        "one-hot of the choice": (
            [*body, best, make("OneHot", ["best", "depth", "values"], ["label"])],
            constants | {"depth": np.array(NUM_CLASSES), "values": np.array([0, 1], np.float32)},
            scores | {"label": (1, ["n", NUM_CLASSES])},
            {},
        ),
        "softmax and ZipMap (Azure Custom Vision)": (
            [
                *body,
                make("Softmax", ["logits"], ["scores"], axis=1),
                make("ZipMap", ["scores"], ["loss"], domain="ai.onnx.ml", classlabels_strings=names),
            ],
            constants,
            {"loss": (maps, None)},
            {"ml": True},
        ),
        "pixels, cast (uint8)": (
            [make("Cast", ["image"], ["real"], to=1), make("Mul", ["real", "small"], ["scaled"]), *body[1:]],
            constants | {"small": np.float32(1 / 255)},
            scores,
            {"taken": types.UINT8},
        ),
        "softmax of a softmax": (
            [*body, make("Softmax", ["logits"], ["s"], axis=1), make("Softmax", ["s"], ["scores"], axis=1)],
            constants,
            {"scores": (1, ["n", NUM_CLASSES])},
            {},
        ),
    }
    written["pixels, cast (uint8)"][0].insert(2, make("Conv", ["scaled", "cw"], ["c"]))
    for name, (nodes, values, outputs, settings) in written.items():
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        model = classifier_of(copies, values, outputs, **settings)
        (folder / f"onnx.helper--{name}.onnx").write_bytes(model.SerializeToString())
    model = float_classifier("conv", relu=True)
    (folder / "onnx.helper--conv, ReLU, then mean (SqueezeNet).onnx").write_bytes(model.SerializeToString())
    model = float_classifier("gemm")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = -1
    (folder / "onnx.helper--gemm, batch of size -1.onnx").write_bytes(model.SerializeToString())


def write_sklearn(folder: Path) -> None:
    """scikit-learn's classifiers by skl2onnx, strings as labels, with ZipMap and without."""
    load_digits = module("sklearn.datasets").load_digits
    linear, pipeline = module("sklearn.linear_model"), module("sklearn.pipeline").make_pipeline
    scaler, to_onnx = module("sklearn.preprocessing").StandardScaler, module("skl2onnx").to_onnx
    images, digits = load_digits(return_X_y=True)
    images, names = (images / 16).astype(np.float32), np.array([f"digit {digit}" for digit in digits])
    network = module("sklearn.neural_network").MLPClassifier
    models = {
        "LogisticRegression": linear.LogisticRegression(max_iter=300),
        "scaled LogisticRegression": pipeline(scaler(), linear.LogisticRegression(max_iter=300)),
        "scaled MLPClassifier": pipeline(scaler(), network((32,), max_iter=40)),
        "LinearDiscriminantAnalysis": module("sklearn.discriminant_analysis").LinearDiscriminantAnalysis(),
        "RidgeClassifier": linear.RidgeClassifier(),
        "LinearSVC": module("sklearn.svm").LinearSVC(),
        "Perceptron": linear.Perceptron(),
        "SGDClassifier": linear.SGDClassifier(),
        "SGDClassifier, log loss": linear.SGDClassifier(loss="log_loss"),
        "MultinomialNB": module("sklearn.naive_bayes").MultinomialNB(),
        "GaussianNB": module("sklearn.naive_bayes").GaussianNB(),
        "SVC": module("sklearn.svm").SVC(),
        "RandomForestClassifier": module("sklearn.ensemble").RandomForestClassifier(5),
    }
    for name, model in models.items():
        model.fit(images, names)
        for zipmap in (False, True):
            try:
                proto = to_onnx(model, images[:1], options={"zipmap": zipmap})
            except Exception:  # skl2onnx's own types: a model without probabilities takes no such option
                if zipmap:
                    continue
                proto = to_onnx(model, images[:1])
            out = folder / f"skl2onnx{', ZipMap' if zipmap else ''}--{name}.onnx"
            out.write_bytes(proto.SerializeToString())


def write_tensorflow(folder: Path) -> None:
    """Keras models by tf2onnx, as they are and as TFLite files."""
    tf, tf2onnx = module("tensorflow"), module("tf2onnx")
    keras, layers = tf.keras, tf.keras.layers
    keras.utils.set_random_seed(0)
    images = np.load(folder / "images.npy").transpose(0, 2, 3, 1)

    def network(head: str) -> Any:
        given = layers.Input((SIDE, SIDE, 3))
        maps = layers.Conv2D(WIDTH, 3, activation="relu", padding="same")(given)
        maps = layers.DepthwiseConv2D(3, padding="same", activation="relu")(layers.BatchNormalization()(maps))
        if head == "conv":
            return keras.Model(
                given,
                layers.Flatten()(layers.Conv2D(NUM_CLASSES, 1)(layers.GlobalAveragePooling2D(keepdims=True)(maps))),
            )
        if head == "flattened maps, softmax":
            pooled = layers.Flatten()(layers.MaxPooling2D(4)(maps))
        else:
            pooled = layers.GlobalAveragePooling2D()(maps)
        activation = None if head == "dense" else head.rsplit(", ", maxsplit=1)[-1]
        return keras.Model(given, layers.Dense(NUM_CLASSES, activation=activation)(pooled))

    def samples() -> Any:
        for image in images:
            yield [image[None]]

    for head in ("dense", "dense, softmax", "dense, sigmoid", "conv", "flattened maps, softmax"):
        model = network(head)
        signature = [tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32, name="image")]
        call = tf.function(lambda image, model=model: model(image, training=False), input_signature=signature)
        proto, _ = tf2onnx.convert.from_function(call, input_signature=signature, opset=15)
        (folder / f"tf2onnx, Keras--{head}.onnx").write_bytes(proto.SerializeToString())
        for kind in ("float", "int8", "uint8", "int8 weights"):
            converter = tf.lite.TFLiteConverter.from_keras_model(model)
            if kind != "float":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if kind in {"int8", "uint8"}:
                converter.representative_dataset = samples
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = getattr(tf, kind)
            with tempfile.TemporaryDirectory() as work:
                lite = Path(work) / "model.tflite"
                lite.write_bytes(converter.convert())
                out = folder / f"tf2onnx, TFLite {kind}--{head}.onnx"
                subprocess.run(  # noqa: S603 - this interpreter, on files of this script
                    [sys.executable, "-m", "tf2onnx.convert", "--tflite", lite, "--output", out, "--opset", "15"],
                    check=False,
                )


def write_paddle(folder: Path) -> None:
    """Paddle models by Paddle2ONNX."""
    paddle, paddle2onnx = module("paddle"), module("paddle2onnx")
    nn = paddle.nn
    paddle.seed(0)

    class Net(nn.Layer):  # type: ignore[misc, name-defined]
        def __init__(self, head: str) -> None:
            super().__init__()
            self.head = head
            self.body = nn.Sequential(nn.Conv2D(3, WIDTH, 3), nn.BatchNorm2D(WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2D(1))
            self.linear, self.conv = nn.Linear(WIDTH, NUM_CLASSES), nn.Conv2D(WIDTH, NUM_CLASSES, 1)

        def forward(self, image: Any) -> Any:
            pooled = self.body(image)
            if self.head == "conv":
                return paddle.flatten(self.conv(pooled), 1)
            scores = self.linear(paddle.flatten(pooled, 1))
            return nn.functional.softmax(scores) if self.head == "linear, softmax" else scores

    for head in ("linear", "linear, softmax", "conv"):
        with tempfile.TemporaryDirectory() as work:
            net = Net(head)
            net.eval()
            spec = [paddle.static.InputSpec([-1, 3, SIDE, SIDE], "float32")]
            paddle.jit.save(net, f"{work}/model", input_spec=spec)
            (graph,) = (each for each in Path(work).iterdir() if each.suffix in {".json", ".pdmodel"})
            out = folder / f"Paddle2ONNX--{head}.onnx"
            paddle2onnx.export(str(graph), f"{work}/model.pdiparams", str(out), opset_version=13)


def write_jax(folder: Path) -> None:
    """A Flax model by jax2onnx."""
    jax2onnx, nnx = module("jax2onnx"), module("flax.nnx")
    jax = module("jax")

    class Net(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, head: str) -> None:
            keys = nnx.Rngs(0)
            self.head = head
            self.conv, self.linear = nnx.Conv(3, WIDTH, (3, 3), rngs=keys), nnx.Linear(WIDTH, NUM_CLASSES, rngs=keys)

        def __call__(self, image: Any) -> Any:
            scores = self.linear(jax.nn.relu(self.conv(image)).mean((1, 2)))
            return jax.nn.softmax(scores) if self.head == "linear, softmax" else scores

    for head in ("linear", "linear, softmax"):
        model = jax2onnx.to_onnx(Net(head), [("B", SIDE, SIDE, 3)])
        (folder / f"jax2onnx, Flax--{head}.onnx").write_bytes(model.SerializeToString())


SOURCES = {
    "jax": write_jax,
    "onnx": write_onnx,
    "paddle": write_paddle,
    "quantization": write_quantization,
    "sklearn": write_sklearn,
    "tensorflow": write_tensorflow,
    "torch": write_torch,
    "transformers": write_transformers,
}

if __name__ == "__main__":
    SOURCES[sys.argv[1]](Path(sys.argv[2]))
