"""The engines that compute log-probs: vLLM in two ways, and transformers.

In: requests (prompt ids, response ids). Out: float32 log-probs of the response tokens, in nats.
"""
