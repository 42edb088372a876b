"""Outcomes of any number of inputs on one device: measured batch by batch, by several threads, with checkpoints."""
