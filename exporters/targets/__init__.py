"""What a bundle can hold besides its ONNX model.

The registry of targets, and how each is built from the checked model.
"""
