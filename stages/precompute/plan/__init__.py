"""Planning: the work is written to disk before any of it is scored.

In: tokenized rows. Out: planned shards on disk, which any job can score.
"""
