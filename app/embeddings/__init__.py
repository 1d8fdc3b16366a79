"""Text to vectors with local sentence-transformers models.

`files` reads models on disk, `catalogue` finds them by name, `hub` fetches others, `model` holds
one in memory, `batching` shares it among requests, and `embedder` is what the services use. Only
`model` imports torch, and only when a text is to be embedded: a service without such indexes never
pays for it.
"""

from app.embeddings import batching, catalogue, embedder, files, hub, model

__all__ = ["batching", "catalogue", "embedder", "files", "hub", "model"]
