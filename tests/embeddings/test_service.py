"""The running service: what it holds in memory, and the vendor's clients with texts alone."""

import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cyborgdb import Client

from tests.service.conftest import Service, new_service

KEY = secrets.token_bytes(32)
DOCS = Path(__file__).parents[2] / "docs" / "embeddings.md"
TEXTS = [
    "The cat sleeps on the sofa.",
    "Stocks fell sharply on Monday.",
    "A recipe for onion soup.",
]


@pytest.fixture(scope="module")
def service(models_dir: Path) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        service = new_service(
            Path(directory),
            SEALDEX_WORKERS="1",
            SEALDEX_MODELS_DIR=str(models_dir),
            HF_HUB_OFFLINE="1",
        )
        service.start()
        yield service
        service.stop()


def maps_torch(service: Service) -> bool:
    """Whether any process of the service has torch's libraries in its memory."""
    assert service.process is not None
    supervisor = psutil.Process(service.process.pid)
    processes = [supervisor, *supervisor.children(recursive=True)]
    maps = [
        Path(f"/proc/{process.pid}/maps").read_text()
        for process in processes
        if "postgres" not in process.name()
    ]
    assert len(maps) >= 2
    return any("libtorch" in one for one in maps)


# The first test here: the others load a model.
def test_torch_is_loaded_with_the_first_model_and_never_before(service: Service) -> None:
    plain: dict[str, Any] = {"index_name": "plain", "index_key": KEY.hex()}
    assert service.post("indexes/create", {**plain, "dimension": 2}).status_code == 200
    items = [{"id": "a", "vector": [1, 2], "contents": "text"}]
    assert service.post("vectors/upsert", {**plain, "items": items}).status_code == 200
    assert service.post("vectors/query", {**plain, "query_vectors": [1, 2]}).json() == {
        "results": [{"id": "a"}]
    }
    assert service.post("indexes/stats", plain).status_code == 200
    assert service.post("vectors/query", {**plain, "query_contents": "text"}).status_code == 400
    assert (
        service.post("indexes/create", {**plain, "embedding_model": "unknown"}).status_code == 400
    )
    assert len(httpx.get(f"{service.url}/v1/embedding-models").json()["models"]) == 1
    assert not maps_torch(service)

    texts: dict[str, Any] = {"index_name": "first", "index_key": KEY.hex()}
    assert (
        service.post("indexes/create", {**texts, "embedding_model": "all-MiniLM-L6-v2"}).status_code
        == 200
    )
    assert maps_torch(service)


def test_the_sdk_sends_texts_alone(service: Service) -> None:
    index = Client(service.url, "").create_index(
        "sdk", KEY, embedding_model="all-MiniLM-L6-v2", metric="cosine"
    )
    index.upsert([{"id": str(number), "contents": text} for number, text in enumerate(TEXTS)])
    assert [
        match["id"] for match in index.query(query_contents="What is for dinner?", top_k=1)
    ] == ["2"]
    assert index.get(["0"], include=["contents"])[0]["contents"] == TEXTS[0]


# The client's own word for it.
@pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension` method:FutureWarning")
def test_the_vendors_langchain_store_shares_the_model_with_the_service(
    service: Service, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cyborgdb.integrations.langchain import CyborgVectorStore  # noqa: PLC0415 - needs what may not be there

    # It loads the model by the name that it also gives to the service: here, that of a directory.
    monkeypatch.chdir(models_dir)
    store = CyborgVectorStore("langchain", KEY, None, service.url, embedding="all-MiniLM-L6-v2")
    store.add_texts(
        TEXTS, metadatas=[{"n": number} for number in range(len(TEXTS))], ids=["0", "1", "2"]
    )
    (found,) = store.similarity_search("What is for dinner?", k=1)
    assert (found.page_content, found.metadata) == (TEXTS[2], {"n": 2})
    # What the client has embedded is found by what the service embeds.
    matches = store.index.query(query_contents=TEXTS[1], top_k=1, include=["distance"])
    assert (matches[0]["id"], matches[0]["distance"]) == ("1", pytest.approx(0, abs=1e-5))
    assert service.post(
        "indexes/stats", {"index_name": "langchain", "index_key": KEY.hex()}
    ).json()["embedding"]


def test_the_langchain_store_of_the_docs_sends_texts_alone(service: Service) -> None:
    (code,) = re.findall(
        r"```python\n(from cyborgdb\.integrations.*?)```", DOCS.read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(compile(code.replace("http://127.0.0.1:8000", service.url), DOCS.name, "exec"), names)  # noqa: S102 - what the docs show is run
    (document,) = names["found"]
    assert document.page_content == "Keys are never stored."
    assert document.metadata == {"page": 1}
    retriever = names["store"].as_retriever(search_kwargs={"k": 1})
    assert [found.metadata for found in retriever.invoke("Do you save keys?")] == [{"page": 1}]
