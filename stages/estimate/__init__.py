"""Estimates of both stages, without loading any weights.

In: a checkpoint's configuration and the data. Out: hours, cost, disk and memory.
"""
