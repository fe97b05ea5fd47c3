"""A cache for other programs.

In: a sealed cache. Out: plain data sets in a folder or on the Hub, with a card.
"""
