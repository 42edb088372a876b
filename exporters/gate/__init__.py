"""The gate.

An export runs beside its original, and is written only if every logit agrees within the limits of its precision.
"""
