"""What an injection promises before it ships: predicted T, U, S and H with intervals, the classes to doubt, and warnings."""
