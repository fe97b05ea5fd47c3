"""Stage two: a cache -> batches -> log-probs -> loss -> a trained policy.

In: a sealed cache and a policy checkpoint. Out: a model with its record, card and scored pairs.
"""
