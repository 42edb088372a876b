"""Measurements that documentation cites, each with the command that repeats it."""
