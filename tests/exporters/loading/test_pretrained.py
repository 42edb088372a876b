"""Models of transformers: folders, names on the hub, and what is refused."""
