"""Class updates, measured: how long one takes, and how requests fare while one is applied."""
