"""The trained injector as an ONNX model, with which a device makes rows of descriptors."""
