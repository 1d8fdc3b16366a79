"""Stands in for a package of gigabytes that the SDK's LangChain store imports for a type, and that
no test uses.
"""


class SentenceTransformer:
    """Never made: the tests bring their own embeddings."""
