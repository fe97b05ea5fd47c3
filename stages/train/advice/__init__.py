"""What goes wrong in a run, from its logged metrics: a warning, its figures, and a remedy.

Single steps are noise: what is compared are means over windows of steps, with standard errors. A
run that learns as it should gets no warning; each threshold says why it stands where it does.
"""
