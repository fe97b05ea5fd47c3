"""`reflogp doctor`: a machine -> a report, after running both stages on it as the command does.

`run.py` asks `stages/doctor` what is installed and runs `stage_one.py` and `stage_two.py`, each in
a process of its own: an engine leaves no trace in training, and a process that dies takes only its
own stage with it. `task.py` is what both share.
"""
