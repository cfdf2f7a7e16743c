"""From probabilities to numbers that are cited: odds, estimands, intervals, what a screening may claim.

Pure functions of arrays and tables.
"""
