"""What an injection promises before it ships.

Predicted T, U, S and H with intervals, the confidence in each class, and warnings.
"""
