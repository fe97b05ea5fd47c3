"""Scoring, here or on many machines.

In: planned shards. Out: finished shards, with a log-prob for every response token.
"""
