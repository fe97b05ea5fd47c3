"""The work, written down before any of it is done.

In: tokenized rows. Out: planned shards on disk, which any job may score.
"""
