"""Tokenization. No other code turns text into tokens.

In: preferences. Out: prompt and response token ids, as both stages use them.
"""
