"""Stage one: preferences -> tokens -> plan -> scores -> a sealed cache.

In: preferences and a reference checkpoint. Out: a cache of token ids and log-probs.
"""
