"""Zero-shot benchmarks of the literature.

Their data, the published recipe, and how good and fast injection is on them.
"""
