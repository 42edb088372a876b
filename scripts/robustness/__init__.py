"""Loops that kill, damage and forge until something breaks, and count what did."""
