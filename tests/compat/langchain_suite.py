"""LangChain's own suite for vector stores, against the store in the vendor's SDK and a running
service.

Run by `test_langchain.py` in an environment of its own; URL and API key come from COMPAT_URL and
COMPAT_API_KEY.
"""

import os
import secrets
from collections.abc import Iterator, Sequence
from importlib import metadata
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from cyborgdb.integrations.langchain import CyborgVectorStore
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests.vectorstores import (
    EMBEDDING_SIZE,
    VectorStoreIntegrationTests,
)


def new_store(kind: type[CyborgVectorStore] = CyborgVectorStore) -> CyborgVectorStore:
    return kind(
        index_name=f"langchain-{secrets.token_hex(4)}",
        index_key=secrets.token_bytes(32),
        api_key=os.environ["COMPAT_API_KEY"],
        base_url=os.environ["COMPAT_URL"],
        embedding=VectorStoreIntegrationTests.get_embeddings(),
        dimension=EMBEDDING_SIZE,
    )


@pytest.fixture
def store() -> Iterator[CyborgVectorStore]:
    store = new_store()
    yield store
    store.delete(delete_index=True)


NO_IDS = "the store returns documents without their ids"


def client_side(name: str) -> Any:
    """Return the suite's test called `name`, expected to fail for what the SDK's store does by
    itself.
    """
    inherited = getattr(VectorStoreIntegrationTests, name)
    return pytest.mark.xfail(reason=NO_IDS, strict=True)(copy_of(inherited))


def copy_of(function: Any) -> Any:
    return FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )


class TestStandard(VectorStoreIntegrationTests):
    """The suite on the store as it is."""

    @property
    def has_get_by_ids(self) -> bool:
        return False

    @pytest.fixture
    def vectorstore(self, store: CyborgVectorStore) -> VectorStore:
        return store

    test_add_documents = client_side("test_add_documents")
    test_deleting_documents = client_side("test_deleting_documents")
    test_deleting_bulk_documents = client_side("test_deleting_bulk_documents")
    test_add_documents_with_ids_is_idempotent = client_side(
        "test_add_documents_with_ids_is_idempotent"
    )
    test_add_documents_by_id_with_mutation = client_side("test_add_documents_by_id_with_mutation")
    test_add_documents_async = client_side("test_add_documents_async")
    test_deleting_documents_async = client_side("test_deleting_documents_async")
    test_deleting_bulk_documents_async = client_side("test_deleting_bulk_documents_async")
    test_add_documents_with_ids_is_idempotent_async = client_side(
        "test_add_documents_with_ids_is_idempotent_async"
    )
    test_add_documents_by_id_with_mutation_async = client_side(
        "test_add_documents_by_id_with_mutation_async"
    )


class StoreWithIds(CyborgVectorStore):
    """The store with what it lacks for the rest of the suite: it minds the ids of documents, and
    finds them by id.
    """

    def add_documents(self, documents: list[Document], ids: Any = None, **_: Any) -> list[str]:
        own = [document.id or secrets.token_hex(8) for document in documents]
        return super().add_documents(documents, ids=ids or own)

    def similarity_search(
        self,
        query: str,
        k: int = 4,
        filter: Any = None,  # noqa: A002
        **_: Any,
    ) -> list[Document]:
        return [self._document(match) for match in self._execute_query(query, k, filter)]

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [self._document(item) for item in self.index.get(list(ids), include=["metadata"])]

    @staticmethod
    def _document(found: dict[str, Any]) -> Document:
        fields = dict(found["metadata"])
        return Document(id=found["id"], page_content=fields.pop("_content"), metadata=fields)


class TestStandardWithIds(VectorStoreIntegrationTests):
    """The whole suite: what the service is asked for it answers."""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        store = new_store(StoreWithIds)
        yield store
        store.delete(delete_index=True)


TEXTS = ["red apple", "green apple", "blue sky", "grey sky"]
FIELDS = [{"kind": "fruit", "n": n} if n < 2 else {"kind": "weather", "n": n} for n in range(4)]


@pytest.fixture
def filled(store: CyborgVectorStore) -> CyborgVectorStore:
    assert store.add_texts(TEXTS, FIELDS, ids=["0", "1", "2", "3"]) == ["0", "1", "2", "3"]
    return store


def test_search_finds_the_text_itself_first(filled: CyborgVectorStore) -> None:
    found = filled.similarity_search("blue sky", k=2)
    assert len(found) == 2
    assert (found[0].page_content, found[0].metadata) == ("blue sky", {"kind": "weather", "n": 2})


def test_the_score_of_the_text_itself_is_one(filled: CyborgVectorStore) -> None:
    found = filled.similarity_search_with_score("red apple", k=4)
    assert found[0][0].page_content == "red apple"
    assert found[0][1] == pytest.approx(1, abs=1e-5)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)


def test_search_by_vector(filled: CyborgVectorStore) -> None:
    vector = VectorStoreIntegrationTests.get_embeddings().embed_query("grey sky")
    assert filled.similarity_search_by_vector(vector, k=1)[0].page_content == "grey sky"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"kind": "fruit"}, {"red apple", "green apple"}),
        ({"n": {"$gte": 3}}, {"grey sky"}),
        ({"$and": [{"kind": "weather"}, {"n": {"$lt": 3}}]}, {"blue sky"}),
        ({"kind": "mineral"}, set()),
    ],
)
def test_filter(filled: CyborgVectorStore, condition: dict[str, Any], expected: set[str]) -> None:
    found = filled.similarity_search("apple", k=4, filter=condition)
    assert {document.page_content for document in found} == expected


def test_get_returns_documents_by_id(filled: CyborgVectorStore) -> None:
    found = filled.get(["2", "unknown", "0"])
    assert [document.page_content for document in found] == ["blue sky", "red apple"]


def test_delete_removes_documents(filled: CyborgVectorStore) -> None:
    assert filled.delete(["0", "unknown"])
    assert filled.get(["0"]) == []
    assert {document.page_content for document in filled.similarity_search("apple", k=10)} == set(
        TEXTS[1:]
    )


def test_a_retriever_searches(filled: CyborgVectorStore) -> None:
    found = filled.as_retriever(search_kwargs={"k": 1}).invoke("green apple")
    assert [document.page_content for document in found] == ["green apple"]


@pytest.mark.skipif(
    metadata.version("cyborgdb").startswith("0.12."), reason="0.12 embeds all texts itself"
)
def test_own_embeddings_can_be_added(store: CyborgVectorStore) -> None:
    vectors = np.eye(2, EMBEDDING_SIZE, dtype=np.float32)
    store.add_texts(["first", "second"], ids=["1", "2"], embeddings=vectors)
    assert store.similarity_search_by_vector(vectors[1].tolist(), k=1)[0].page_content == "second"
