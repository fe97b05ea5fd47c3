"""What is on disk: Arrow schemas, the manifest, how files are written. Imports nothing of ours."""
