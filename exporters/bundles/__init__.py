"""Bundles: planned, written beside their place, gated, and moved there whole; compacted when their slots are full."""
