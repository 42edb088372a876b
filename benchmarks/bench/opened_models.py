"""What `overhead.py` starts in fresh processes. Each imports what it needs itself: imports are a part of a start."""

from __future__ import annotations

from collections.abc import Callable


def bare_session(model: str, num_threads: int) -> Callable[[], object]:
    """Return a run of a model in ONNX Runtime as somebody without icis-deploy would load it."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    dtype = np.uint8 if image.type == "tensor(uint8)" else np.float32
    feed = {image.name: np.zeros((1, *image.shape[1:]), dtype=dtype)}
    names = [session.get_outputs()[0].name]
    return lambda: session.run(names, feed)


def opened_device(folder: str, num_threads: int) -> Callable[[], object]:
    """Return a prediction of a bundle that is opened as a device."""
    import numpy as np

    from icis_deploy.runtime.device import Device

    device = Device.open(folder, num_threads=num_threads)
    expected = device.bundle.model_input
    images = np.zeros((1, *expected.shape), dtype=expected.dtype)
    return lambda: device.predict(images)
