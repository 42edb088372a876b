"""Small models, bundles and class updates for tests and scripts: real files, made in milliseconds.

Both `tests` and `scripts` import this package, and it imports neither. It is no part of the wheel, so nothing in
`icis_deploy`, `exporters` or `benchmarks` may import it.
"""
