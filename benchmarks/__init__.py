"""Measure latency, accuracy, parity and update time, and report them so that they can be trusted."""
