"""What a bundle can hold besides its ONNX model: the registry of targets, and how each is built from the checked model."""
