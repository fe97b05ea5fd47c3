"""A checkpoint on disk.

In: a folder, the adapter on top of it and a dtype (`Checkpoint`). Out: its causal language model,
or an error that says why not.
"""
