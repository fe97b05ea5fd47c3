"""Stage one on a Ray cluster: planned shards over actors, each with an engine of its own."""
