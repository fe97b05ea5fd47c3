"""The end of stage one.

In: finished shards. Out: a sealed cache, a sample of which was rescored first.
"""
