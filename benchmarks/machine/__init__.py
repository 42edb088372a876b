"""The machine that measures: its fingerprint, what else it does meanwhile, its GPU and its memory bandwidth."""
