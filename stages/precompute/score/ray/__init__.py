"""Scoring on a Ray cluster.

In: planned shards. Out: the same finished shards, from actors that may come, go and fail.
"""
