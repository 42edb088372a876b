"""Rows as vectors.

Their spectrum, the function that predicts them from descriptors, and the calibration that brings them to compete with
the seen ones.
"""
