"""The command and the machinery that is not a stage."""
