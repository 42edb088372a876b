"""The head in an ONNX graph.

Found by structure, read as rows, expanded by new rows or by slots, with everything that follows it kept.
"""
