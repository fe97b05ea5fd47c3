"""What the preferences of a cache can teach.

In: a sealed cache. Out: findings, a suggestion of loss and beta, and a page with charts.
"""
