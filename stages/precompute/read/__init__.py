"""Reading preferences, whatever their form.

In: files or a data set. Out: preferences (a prompt and its responses), or a reason to quarantine.
"""
