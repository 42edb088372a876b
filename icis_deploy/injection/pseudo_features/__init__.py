"""Features that stand in for those of images.

Class means from the head's rows, neutral images for the spread, and the mixture of both on which the head is as
accurate as its owner says.
"""
