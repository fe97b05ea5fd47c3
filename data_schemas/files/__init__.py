"""Locating, reading, writing and owning files, on disk or in an object store."""
