"""The on-disk formats: Arrow schemas, JSON records, and how their files are read and written.

Imports nothing from `stages` or `pipeline`.
"""
