"""The cache for trainers that are not ours."""
