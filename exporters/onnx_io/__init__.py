"""ONNX files in and out.

Weights stay in their file until they are needed, so that a model larger than memory can be handled.
"""
