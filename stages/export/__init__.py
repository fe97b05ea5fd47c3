"""A sealed cache -> plain data sets for other programs."""
