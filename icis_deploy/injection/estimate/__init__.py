"""What an injection promises before it ships.

Predicted T, U, S and H with intervals, the classes to doubt, and warnings.
"""
