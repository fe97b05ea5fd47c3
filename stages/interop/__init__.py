"""The cache in trainers that are not ours.

In: a sealed cache and a trainer's rows. Out: reference log-probs in that trainer's batches.
"""
