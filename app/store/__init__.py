"""PostgreSQL: every statement the service sends."""

from app.store import indexes, items, partitions, tables

__all__ = ["indexes", "items", "partitions", "tables"]
