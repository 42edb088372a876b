"""The version of icis-deploy; the only place that states it."""

__version__ = "0.1.0"
