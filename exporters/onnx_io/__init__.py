"""ONNX files in and out.

Weights stay places in a file until they are needed, so that a model larger than memory can pass.
"""
