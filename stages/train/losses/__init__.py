"""Preference losses: pure functions of log-probs. No model, no batch, no state.

A loss takes `PairLogps`, or `UnpairedLogps`, and gives one number a pair or row. A new one is a
function in the file of its family and an entry in registry.py; its arguments, their ranges and
their defaults are read from its signature.
"""
