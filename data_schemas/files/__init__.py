"""How files are reached, read, written and owned, on disk or in an object store."""
