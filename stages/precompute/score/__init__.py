"""Scoring, on this machine or on many.

In: planned shards. Out: finished shards, with a log-prob for every response token.
"""
