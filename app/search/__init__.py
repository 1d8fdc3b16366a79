"""Exact arithmetic on opened vectors: arrays in, arrays out."""

from app.search import distance, rerank

__all__ = ["distance", "rerank"]
