"""The training loop.

In: a policy, batches and a loss. Out: a trained policy and its metrics for each step.
"""
