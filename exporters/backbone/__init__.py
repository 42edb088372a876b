"""The part of a model below its head.

Cut off, run on images, neutral images or seeded inputs, and its activations read.
"""
