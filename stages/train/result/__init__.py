"""The result of a run.

In: a trained policy. Out: a folder with the model, its record, card and scored pairs, moved into
the output.
"""
