"""One forward pass, the same arithmetic in both stages.

In: a model and token ids. Out: the log-probs of the response tokens, in nats.
"""
