"""Stage two: batches -> policy log-probs -> loss -> a trained policy."""
