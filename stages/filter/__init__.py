"""A sealed cache, less the rows that break a rule -> another sealed cache. Nothing is scored."""
