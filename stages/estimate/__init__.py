"""What both stages will take, before any weight is loaded.

In: a checkpoint's configuration and the data. Out: hours, cost, disk and memory.
"""
