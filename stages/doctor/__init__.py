"""Whether reflogp works on this machine: the machine -> what is installed; a model -> its numbers.

`families.py` and `shapes.py` make random models, tiny or of real size, and `words.py` their data.
`truth.py` computes plainly what both stages compute, and `machine.py` says what is there. The
stages themselves are run by `pipeline/doctor`.
"""
