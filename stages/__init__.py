"""The stages and their parts. Imports data_schemas, never pipeline."""
