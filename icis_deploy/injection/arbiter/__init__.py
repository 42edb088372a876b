"""Budgets of seen accuracy, and the arbiter that gets the most of one, from images of classes that the head knows.

Some seen classes play new ones: their rows are predicted from the rest, and real images of them show when a new class
is the better answer. From them the arbiter is fitted, compared with a constant offset, and U is estimated; images of
all seen classes set the threshold at which a budget is spent. Arrays in, arrays out.
"""
