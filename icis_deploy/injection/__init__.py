"""Rows for unseen classes, without an image.

Predictors map descriptors to rows, rows are calibrated, held-out classes choose the settings, pseudo-features stand
in for images, and an estimate says how accurate the result will be. Arrays in, arrays out; nothing here reads a file.
"""
