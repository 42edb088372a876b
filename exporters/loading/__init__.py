"""Users' models.

An ONNX file, an exported torch program or a factory becomes an ONNX graph; the original is kept to compare
with.
"""
