"""TensorRT and TensorRT-RTX.

The graph that their parser takes, symmetric quantization, build settings and the engine.
"""
