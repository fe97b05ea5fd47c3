"""Preference losses: pure functions of log-probs. No model, no batch, no state.

A loss takes `PairLogps` or `UnpairedLogps` and returns one number per pair or row. To add a loss,
write a function in the file of its family and an entry in registry.py. Its arguments, their ranges
and defaults come from its signature.
"""
