"""Programs that are run from a checkout: see README.md."""
