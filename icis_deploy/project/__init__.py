"""A project file: read and checked, and its steps done where something has changed."""
