"""The forms of an export; apart from what makes them, so that --help need not import that."""

from typing import Literal

Form = Literal["parquet", "trl"]
"""`parquet`: all that a cache has of a row, and text. `trl`: what TRL's own precompute makes."""
