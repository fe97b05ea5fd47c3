"""The command line, and everything around the stages. Imports stages and data_schemas."""
