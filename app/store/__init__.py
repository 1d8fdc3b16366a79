"""PostgreSQL: every statement the service sends."""

from app.store import candidates, indexes, items, partitions, tables

__all__ = ["candidates", "indexes", "items", "partitions", "tables"]
