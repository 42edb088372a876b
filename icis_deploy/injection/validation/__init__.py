"""Class-level cross-validation.

Known classes are held out and predicted from the rest, which chooses the method, the settings and the operating point
without an image of a new class.
"""
