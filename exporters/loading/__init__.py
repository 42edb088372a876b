"""Users' models.

An ONNX file, an exported torch program or a factory becomes an ONNX graph, with the original beside it to compare
with.
"""
