"""Features that stand in for those of images.

Class means from the head's rows, neutral pictures for the spread, and the mixture of both that the head recognises as
often as its owner says.
"""
