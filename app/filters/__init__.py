"""The metadata filter language: read, match, and what the blind index can say about it."""

from app.filters import grammar, matching, nodes, terms

__all__ = ["grammar", "matching", "nodes", "terms"]
