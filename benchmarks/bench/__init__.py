"""`bench` and `bench-scale`: bundles and their original, opened, checked for correctness and measured in turn."""
