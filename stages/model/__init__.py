"""A checkpoint on disk.

In: a folder or a name on the hub. Out: the causal language model that it holds, or a refusal.
"""
