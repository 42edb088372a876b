"""A project file: what `icis-deploy run` reads, checks and does, step by step, and what `icis-deploy init` writes."""
