"""Reading preferences in any input form.

In: files or a hub data set. Out: preferences (a prompt and its responses), or a reason to
quarantine the row.
"""
