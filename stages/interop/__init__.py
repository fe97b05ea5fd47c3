"""The cache in other trainers.

In: a sealed cache and a trainer's rows. Out: reference log-probs in that trainer's batches.
"""
