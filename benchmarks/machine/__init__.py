"""The machine that measures: its fingerprint, what else it does during a run, its GPU and its memory bandwidth."""
