"""The only place where text becomes tokens.

In: preferences. Out: prompt and response token ids, as both stages use them.
"""
