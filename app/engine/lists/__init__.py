"""The kind of index that the service searches: lists that PostgreSQL keeps, but cannot read."""
