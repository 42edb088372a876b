"""Time, measured so that it can be trusted.

Warm-up, interleaved rounds, percentiles with enough samples, comparison with an interval, drift.
"""
