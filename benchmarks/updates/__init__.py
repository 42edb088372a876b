"""Class updates, measured: how long one takes, and what requests beside them feel."""
