"""What any stage does with a cache on disk.

In: a cache's folder, or finished rows. Out: checked shards, row ids, quarantined rows.
"""
