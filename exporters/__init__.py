"""The workbench: from a user's model to a checked bundle. Head work happens on the ONNX graph."""
