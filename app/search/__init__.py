"""Exact arithmetic on opened vectors: arrays in, arrays out."""

from app.search import calibrate, distance, profile, rerank

__all__ = ["calibrate", "distance", "profile", "rerank"]
