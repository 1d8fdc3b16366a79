"""The kind of index that PostgreSQL searches: keyed sketches in an ivfflat index."""
