"""What keeps generated files of the source tree up to date."""
