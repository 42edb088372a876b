"""Zero-shot benchmarks of the literature: their data, the published recipe, and how good and fast injection is on them."""
