"""The policy.

In: a checkpoint, an adapter and a dtype. Out: a model ready to train in that precision.
"""
