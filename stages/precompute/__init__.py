"""Stage one: preferences -> tokens -> plan -> scores -> shards."""
