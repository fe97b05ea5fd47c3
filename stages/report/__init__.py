"""A run as one HTML page, and the drawing that other pages share.

In: finished runs. Out: an HTML page with charts, pairs token by token and the loss to explore.
"""
