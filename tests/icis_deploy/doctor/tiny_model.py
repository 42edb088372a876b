"""The source of the model that `icis-deploy doctor` carries in bytes, as a device has no library to make it with."""

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

GRAPH = """
<ir_version: 8, opset_import: ["" : 13]>
doctor (float[batch, 3, 8, 8] image, float[2, 4] slot_weight, float[2] slot_bias)
  => (float[batch, 5] logits, float[batch, 4] features)
{
  maps = Conv <kernel_shape = [3, 3]> (image, filters)
  positive = Relu (maps)
  pooled = GlobalAveragePool (positive)
  features = Flatten (pooled)
  seen = Gemm <transB = 1> (features, head_weight, head_bias)
  slots = Gemm <transB = 1> (features, slot_weight, slot_bias)
  logits = Concat <axis = 1> (seen, slots)
}
"""


def tiny_model(filters, rows, slot_bias):
    """Return the model: a convolution, ReLU, mean, a head of three classes and two slots.

    Args:
        filters: `(4, 3, 3, 3)`.
        rows: `(3, 5)`.
        slot_bias: Bias of an empty slot.
    """
    model = onnx.parser.parse_model(GRAPH)
    tensors = {
        "filters": filters,
        "head_weight": rows[:, :-1],
        "head_bias": rows[:, -1],
        "slot_weight": np.zeros((2, 4), np.float32),
        "slot_bias": np.full(2, slot_bias, np.float32),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()
    )
    onnx.checker.check_model(model)
    return model
