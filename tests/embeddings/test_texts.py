"""Texts in place of vectors, over HTTP."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.settings import Settings
from tests.api.conftest import RemoteIndex, serve

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DIMENSION = 384
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

TEXTS = {
    "one word": "telescope",
    "a sentence": "A magnifier of images of distant objects.",
    "longer than the model reads": "the quick brown fox jumps over the lazy dog " * 100,
    "no spaces": "x" * 5_000,
    "other scripts": "Bücher über Öfen, книги, 東京, \U0001f512",
    "white space": " \t\n ",
    "a null character": "a\0b",
    "address of a picture": "https://example.com/cat.png",
    "picture in an address": "data:image/png;base64,AAAA",
    "address of a film": "https://youtu.be/x",
    "a file": "/etc/hostname",
}

# What one may ask for → the word whose gloss answers it.
QUESTIONS = {
    "looking at the stars from your garden": "telescope",
    "twister that tears roofs off houses": "tornado",
    "black and white keys in the concert hall": "piano",
    "someone who makes furniture out of oak": "carpenter",
    "symphony performers with a conductor": "orchestra",
    "giant sea animal that comes up to breathe": "whale",
    "the place where I borrow novels": "library",
    "strings played with a bow": "violin",
    "keeps a ship from drifting away": "anchor",
    "where to keep milk cool in the kitchen": "refrigerator",
    "checkmate your opponent's king": "chess",
    "how leaves turn sunlight into sugar": "photosynthesis",
    "tells how hot or cold it is": "thermometer",
    "what bees make": "honey",
    "commuting to work on two wheels": "bicycle",
    "lying awake all night": "insomnia",
    "lava and ash erupting from a peak": "volcano",
}


@pytest.fixture
async def index(client: httpx.AsyncClient) -> RemoteIndex:
    index = RemoteIndex(client)
    answer = await index.post("indexes/create", embedding_model=MODEL, metric="cosine")
    assert answer.status_code == 200, answer.text
    return index


async def upsert(index: RemoteIndex, items: list[dict[str, Any]]) -> None:
    answer = await index.post("vectors/upsert", items=items)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"status": "success", "message": f"Upserted {len(items)} vectors"}


async def stored(index: RemoteIndex, *ids: str) -> Any:
    return (await index.post("vectors/get", ids=list(ids))).json()["results"]


async def test_the_quick_start_needs_no_vectors(client: httpx.AsyncClient) -> None:
    index = RemoteIndex(client)
    answer = await index.post("indexes/create", embedding_model="all-MiniLM-L6-v2")
    assert answer.json() == {
        "status": "success",
        "message": f"Index '{index.name}' created successfully",
    }
    assert (await index.post("indexes/describe")).json()["dimension"] == DIMENSION

    items = [
        {"id": "item_1", "contents": "Hello, World!"},
        {"id": "item_2", "contents": "Hello, Cyborg!"},
    ]
    await upsert(index, items)
    answer = await index.post(
        "vectors/query", query_contents="Hello, World!", top_k=10, include=["distance"]
    )
    matches = answer.json()["results"]
    assert [match["id"] for match in matches] == ["item_1", "item_2"]
    assert matches[0]["distance"] == pytest.approx(0, abs=1e-3)
    assert matches[1]["distance"] > 0.1
    assert [item["contents"] for item in await stored(index, "item_1", "item_2")] == [
        "Hello, World!",
        "Hello, Cyborg!",
    ]


async def test_the_vectors_are_those_of_sentence_transformers(
    index: RemoteIndex, reference: Any
) -> None:
    await upsert(index, [{"id": name, "contents": text} for name, text in TEXTS.items()])
    vectors = np.array([item["vector"] for item in await stored(index, *TEXTS)], dtype=np.float32)
    expected = reference.encode(list(TEXTS.values()))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


async def test_concurrent_requests_get_their_own_vectors(
    index: RemoteIndex, reference: Any
) -> None:
    batches = [
        [f"{'long ' * (number % 7)}text {number} of {batch}" for number in range(9)]
        for batch in range(12)
    ]
    await asyncio.gather(
        *(upsert(index, [{"id": text, "contents": text} for text in texts]) for texts in batches),
        *(index.post("vectors/query", query_contents=f"text {number}") for number in range(12)),
    )
    texts = [text for batch in batches for text in batch]
    vectors = np.array([item["vector"] for item in await stored(index, *texts)], dtype=np.float32)
    np.testing.assert_allclose(vectors, reference.encode(texts), atol=1e-5)


async def test_a_search_over_500_glosses_finds_what_was_meant(
    index: RemoteIndex, reference: Any
) -> None:
    lines = (Path(__file__).parent / "glosses.jsonl").read_text().splitlines()
    glosses = [json.loads(line) for line in lines]
    assert len(glosses) == 500
    await upsert(index, [{"id": one["id"], "contents": one["gloss"]} for one in glosses])
    lemmas = {one["id"]: one["lemma"] for one in glosses}

    answer = await index.post("vectors/query", query_contents=list(QUESTIONS), top_k=3)
    found = [[lemmas[match["id"]] for match in matches] for matches in answer.json()["results"]]
    missed = [
        question
        for (question, lemma), words in zip(QUESTIONS.items(), found, strict=True)
        if lemma not in words
    ]
    assert not missed
    # The same order as by brute force.
    similarity = (
        reference.encode(list(QUESTIONS)) @ reference.encode([one["gloss"] for one in glosses]).T
    )
    nearest = np.argsort(-similarity, axis=1)[:, :3]
    assert found == [[glosses[row]["lemma"] for row in rows] for rows in nearest]


async def test_items_with_a_vector_keep_it(index: RemoteIndex, reference: Any) -> None:
    own = [1.0] + [0.0] * (DIMENSION - 1)
    await upsert(
        index,
        [
            {"id": "text", "contents": "a text"},
            {"id": "both", "contents": "another text", "vector": own},
            {"id": "vector", "vector": own, "metadata": {"a": 1}},
            {"id": "text again", "contents": "a text", "vector": None, "metadata": {"b": 2}},
        ],
    )
    items = {
        item["id"]: item for item in await stored(index, "text", "both", "vector", "text again")
    }
    assert items["both"]["vector"] == items["vector"]["vector"] == own
    assert items["both"]["contents"] == "another text"
    assert items["text again"]["metadata"] == {"b": 2}
    np.testing.assert_allclose(items["text"]["vector"], reference.encode("a text"), atol=1e-5)
    assert items["text again"]["vector"] == pytest.approx(items["text"]["vector"], abs=1e-6)


@pytest.mark.parametrize(
    ("item", "status", "named"),
    [
        ({"id": "x"}, 400, "Item 1"),
        ({"id": "x", "contents": ""}, 400, "Item 1"),
        ({"id": "x", "vector": []}, 400, "Item 1"),
        ({"id": "x", "contents": "text", "vector": [1.0]}, 400, "Item 1"),
        ({"id": "", "contents": "text"}, 400, "Item 1"),
        # Bytes, as JSON encoders of other languages write them.
        ({"id": "x", "contents": [104, 105]}, 422, '["body","items",1,"contents"]'),
        (
            {"id": "x", "contents": {"type": "Buffer", "data": [104]}},
            422,
            '["body","items",1,"contents"]',
        ),
    ],
)
async def test_a_bad_item_is_named_and_nothing_is_stored(
    index: RemoteIndex, item: dict[str, Any], status: int, named: str
) -> None:
    answer = await index.post("vectors/upsert", items=[{"id": "good", "contents": "a text"}, item])
    assert answer.status_code == status, answer.text
    assert named in answer.text
    assert (await index.post("vectors/num_vectors")).json() == {"result": 0}


async def test_a_batch_of_texts_gives_a_list_each_and_one_text_a_flat_list(
    index: RemoteIndex,
) -> None:
    await upsert(index, [{"id": text, "contents": text} for text in ("cat", "motorcycle")])
    both = await index.post("vectors/query", query_contents=["kitten", "vehicle"], top_k=1)
    assert both.json() == {"results": [[{"id": "cat"}], [{"id": "motorcycle"}]]}
    for one in ("kitten", ["kitten"]):
        answer = await index.post("vectors/query", query_contents=one, top_k=1)
        assert answer.json() == {"results": [{"id": "cat"}]}
    vector = (await stored(index, "motorcycle"))[0]["vector"]
    answer = await index.post(
        "vectors/query", query_contents="kitten", query_vectors=vector, top_k=1
    )
    assert answer.json() == {"results": [{"id": "motorcycle"}]}


@pytest.mark.parametrize(
    ("contents", "status"),
    [("", 400), ([], 400), (["text", ""], 400), (None, 400), (5, 422), ([5], 422), ({}, 422)],
)
async def test_a_query_without_a_text_is_refused(
    index: RemoteIndex, contents: Any, status: int
) -> None:
    answer = await index.post("vectors/query", query_contents=contents)
    assert answer.status_code == status, answer.text


async def test_an_empty_index_has_no_matches_for_a_text(index: RemoteIndex) -> None:
    assert (await index.post("vectors/query", query_contents="text")).json() == {"results": []}
    assert (await index.post("vectors/query", query_contents=["a", "b"])).json() == {
        "results": [[], []]
    }


async def test_a_wrong_key_embeds_nothing(index: RemoteIndex) -> None:
    for route, fields in (
        ("upsert", {"items": [{"id": "a", "contents": "x"}]}),
        ("query", {"query_contents": "x"}),
    ):
        assert (
            await index.post(f"vectors/{route}", index_key="ab" * 32, **fields)
        ).status_code == 401


async def test_stats_name_the_model_and_its_weights(index: RemoteIndex) -> None:
    assert (await index.post("indexes/stats")).json()["embedding"] == {
        "model": MODEL,
        "dimension": DIMENSION,
        "weights_sha256": WEIGHTS_SHA256,
        "status": "available",
    }


async def test_an_index_without_a_model_takes_no_texts(client: httpx.AsyncClient) -> None:
    index = RemoteIndex(client)
    await index.post("indexes/create", dimension=3)
    assert (await index.post("indexes/stats")).json()["embedding"] is None
    answer = await index.post("vectors/upsert", items=[{"id": "a", "contents": "text"}])
    assert (answer.status_code, "Item 0" in answer.text) == (400, True)
    for contents in ("text", ["text"]):
        assert (await index.post("vectors/query", query_contents=contents)).status_code == 400


async def test_too_many_texts_are_refused(module_dsn: Callable[[], str], models_dir: Path) -> None:
    settings = Settings(
        database_url=module_dsn(), workers=1, models_dir=models_dir, max_batch_items=2
    )
    async with serve(settings) as client:
        index = RemoteIndex(client)
        await index.post("indexes/create", embedding_model=MODEL)
        items = [{"id": str(number), "contents": "text"} for number in range(3)]
        assert (await index.post("vectors/upsert", items=items)).status_code == 413
        assert (await index.post("vectors/query", query_contents=["text"] * 3)).status_code == 413
