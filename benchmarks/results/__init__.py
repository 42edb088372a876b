"""A benchmark's result: values, their JSON with a schema, and the text for people."""
