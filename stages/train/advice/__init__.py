"""Warnings about a training run.

In: the run's logged metrics. Out: warnings, each with its figures and a remedy.

Single steps are noise, so the rules compare means over windows of steps, with standard errors. A
run that learns well gets no warning. A comment at each threshold gives the reason for its value.
"""
