"""What any rewrite of an ONNX graph needs.

Edits as checked passes, values of constants, and the axis of classes traced from operator to operator.
"""
