"""What a run leaves behind.

In: a trained policy. Out: a folder with the model, its record, card and scored pairs, put in place.
"""
