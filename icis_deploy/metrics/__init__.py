"""Accuracy and parity of logits.

Accuracy on seen and unseen classes, what new classes cost the seen ones and what can be had for it, what another model
of the same classes lost, and parity of an export with its reference. Pure functions of arrays.
"""
