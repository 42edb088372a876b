"""Bundles: planned, written to a temporary folder, gated, and moved to their own as a whole; compacted when full."""
