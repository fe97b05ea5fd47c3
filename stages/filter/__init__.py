"""Dropping and weighting rows; nothing is scored.

In: a sealed cache and rules. Out: another sealed cache.
"""
