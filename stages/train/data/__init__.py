"""A cache as training data.

In: a sealed cache. Out: batches of tensors: ids, masks, reference log-probs, row weights.
"""
