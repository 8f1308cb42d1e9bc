"""Steps that make the tables of the store and bring older ones up to date; run by `open_store`, only ever added to."""
