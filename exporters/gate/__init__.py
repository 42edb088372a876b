"""The gate.

An export and its original run on the same inputs, and it is written only if every logit agrees within the limits of
its precision.
"""
