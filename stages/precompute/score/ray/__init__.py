"""Scoring on a Ray cluster.

In: planned shards. Out: the same finished shards as locally, from actors that can start, stop and
fail at any time.
"""
