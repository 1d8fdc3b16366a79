"""The metadata filter language: read, match, and what the blind index can say about it."""

from app.filters import grammar, matching, nodes, operands, terms

__all__ = ["grammar", "matching", "nodes", "operands", "terms"]
