"""The command and the Python API: options in, stages called, results printed."""
