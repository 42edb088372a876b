"""The part of a model below its head.

Cut off, run on images, neutral pictures or seeded inputs, and its activations read.
"""
