"""The methods.

Each learns from seen classes to map a descriptor to the direction of a row. ICIS itself, ridge regression, and
mixtures of seen rows; `registry` names them all.
"""
