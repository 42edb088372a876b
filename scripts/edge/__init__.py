"""Benchmarks and checks for devices: without internet, and on arm64."""
