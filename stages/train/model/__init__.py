"""The policy.

In: a checkpoint, an adapter and a precision. Out: a model that trains in it.
"""
