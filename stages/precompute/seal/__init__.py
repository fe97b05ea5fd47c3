"""Sealing, the last step of stage one.

In: finished shards. Out: a sealed cache, after a sample of it was rescored.
"""
