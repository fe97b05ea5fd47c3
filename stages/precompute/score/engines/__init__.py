"""The engines that compute log-probs: two with vLLM, and one with transformers.

In: requests (prompt ids, response ids). Out: float32 log-probs of the response tokens, in nats.
"""
