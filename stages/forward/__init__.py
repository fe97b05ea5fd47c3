"""The forward pass that both stages share.

In: a model and token ids. Out: the log-probs of the response tokens, in nats.
"""
