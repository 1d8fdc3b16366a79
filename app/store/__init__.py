"""PostgreSQL: every statement the service sends."""

from app.store import indexes, items, partitions, samples, tables, training

__all__ = ["indexes", "items", "partitions", "samples", "tables", "training"]
