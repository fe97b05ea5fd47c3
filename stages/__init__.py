"""The two stages, and what they are made of. Imports data_schemas, never pipeline."""
