"""The engines that can give the reference's log-probs."""
