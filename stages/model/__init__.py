"""A checkpoint on disk.

In: a folder or a name on the Hub. Out: its causal language model, or an error that says why not.
"""
