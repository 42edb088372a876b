"""TensorRT and TensorRT-RTX: the graph that their parser takes, symmetric quantization, build settings and the engine."""
