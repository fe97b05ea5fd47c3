"""Reports on runs as one HTML page, and the charts that other pages share.

In: finished runs. Out: an HTML page with charts, pairs token by token, and a loss explorer.
"""
