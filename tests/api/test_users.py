"""User tokens over HTTP: who may do what, and whose tokens open nothing."""

import base64
import hmac
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
import psycopg
import pytest

from app.crypto import hkdf
from app.settings import Settings
from tests.api.conftest import ROOT_KEY, RemoteIndex, Serve, serve

PACKED = {"ids": ["packed"], "vectors_b64": "AACAPwAAgD8AAIA/", "dimension": 3}
ITEMS = [{"id": "a", "vector": [1, 2, 3], "contents": "text", "metadata": {"n": 1}}]

Client: TypeAlias = httpx.AsyncClient


@dataclass
class Users:
    """An index with users of every kind, under a root key."""

    root: RemoteIndex
    tokens: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    async def request(
        self, who: str, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        """Send a request as one of the users, without an index key, or as the root."""
        api_key = ROOT_KEY if who == "root" else self.tokens[who]
        return await self.root.client.request(
            method, f"/v1/{path}", json=body, headers={"X-API-Key": api_key, **headers}
        )

    async def post(self, who: str, route: str, **fields: Any) -> httpx.Response:
        body: dict[str, Any] = {"index_name": self.root.name, **fields}
        if who == "root":
            body = {"index_key": self.root.key, **body}
        return await self.request(who, "POST", route, body)

    async def mint(self, who: str, permissions: list[str]) -> None:
        body = {"permissions": permissions, "index_key": self.root.key}
        answer = await self.request(
            "root", "POST", f"indexes/{quote(self.root.name, safe='')}/users", body
        )
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == ["user_id", "api_key"]
        self.ids[who], self.tokens[who] = answer.json().values()

    async def revoke(self, who: str) -> httpx.Response:
        path = f"indexes/{quote(self.root.name, safe='')}/users/{self.ids[who]}"
        return await self.request("root", "DELETE", path, **{"X-Index-Key": self.root.key})


async def new_users(client: Client, **values: str) -> Users:
    users = Users(RemoteIndex(client, **values))
    assert (await users.post("root", "indexes/create", dimension=3)).status_code == 200
    await users.mint("reader", ["read"])
    await users.mint("writer", ["write"])
    await users.mint("both", ["write", "read", "read"])
    return users


@pytest.fixture
async def users(guarded_client: Client) -> Users:
    users = await new_users(guarded_client)
    assert (await users.post("root", "vectors/upsert", items=ITEMS)).status_code == 200
    return users


# ---------------------------------------------------------------- routes by role

EVERYBODY = {"root": 200, "reader": 200, "writer": 200, "both": 200}
READERS = EVERYBODY | {"writer": 403}
WRITERS = EVERYBODY | {"reader": 403}
ROOT = {"root": 200, "reader": 403, "writer": 403, "both": 403}

ROUTES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "indexes/describe": ({}, EVERYBODY),
    "indexes/stats": ({}, EVERYBODY),
    "vectors/num_vectors": ({}, READERS),
    "vectors/list_ids": ({}, READERS),
    "vectors/get": ({"ids": ["a"]}, READERS),
    "vectors/query": ({"query_vectors": [1, 2, 3]}, READERS),
    "vectors/query_binary": ({"batch": PACKED}, READERS),
    "vectors/upsert": ({"items": ITEMS}, WRITERS),
    "vectors/upsert_binary": ({"batch": PACKED}, WRITERS),
    "vectors/delete": ({"ids": ["a"]}, WRITERS),
    "indexes/train": ({}, ROOT),
    "indexes/delete": ({}, ROOT),
}


@pytest.mark.parametrize("who", EVERYBODY)
@pytest.mark.parametrize("route", ROUTES)
async def test_each_role_may_do_what_the_contract_says(users: Users, who: str, route: str) -> None:
    fields, expected = ROUTES[route]
    answer = await users.post(who, route, **fields)
    assert answer.status_code == expected[who], answer.text
    if answer.status_code == 403:
        assert "permission denied" in answer.json()["detail"]
        assert (await users.post("root", "vectors/list_ids")).json() == {"ids": ["a"], "count": 1}


@pytest.mark.parametrize("who", EVERYBODY)
async def test_only_the_root_key_creates_indexes(users: Users, who: str) -> None:
    name = f"{users.root.name} {who}"
    answer = await users.post(who, "indexes/create", index_name=name, index_key=users.root.key)
    assert answer.status_code == ROOT[who]


@pytest.mark.parametrize("who", EVERYBODY)
async def test_only_the_root_key_manages_users(users: Users, who: str) -> None:
    path, key = f"indexes/{users.root.name}/users", {"X-Index-Key": users.root.key}
    body = {"permissions": ["read"], "index_key": users.root.key}
    assert (await users.request(who, "POST", path, body)).status_code == ROOT[who]
    assert (await users.request(who, "GET", path, **key)).status_code == ROOT[who]
    answer = await users.request(who, "DELETE", f"{path}/{users.ids['reader']}", **key)
    assert answer.status_code == (204 if who == "root" else 403)
    assert (await users.post("reader", "vectors/num_vectors")).status_code == (
        403 if who == "root" else 200
    )


@pytest.mark.parametrize("who", ["reader", "writer", "both"])
async def test_a_user_sees_no_index_but_its_own(users: Users, who: str) -> None:
    assert (await users.request(who, "GET", "indexes/list")).json() == {
        "indexes": [users.root.name]
    }
    assert len((await users.request("root", "GET", "indexes/list")).json()["indexes"]) > 1


@pytest.mark.parametrize("who", EVERYBODY)
async def test_every_user_may_ask_for_the_training_status_and_the_models(
    users: Users, who: str
) -> None:
    answer = await users.request(who, "GET", "indexes/training-status")
    assert answer.status_code == 200
    assert answer.json()["training_indexes"] == []
    assert (await users.request(who, "GET", "embedding-models")).status_code == 200


@pytest.mark.parametrize("who", ["reader", "writer", "both"])
@pytest.mark.parametrize("route", ROUTES)
async def test_other_indexes_are_forbidden_whether_they_exist_or_not(
    users: Users, who: str, route: str
) -> None:
    other = await new_users(users.root.client)
    fields, _ = ROUTES[route]
    answers = [
        (await users.post(who, route, **fields, index_name=name))
        for name in (other.root.name, "no such index", "")
    ]
    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("index_key", ["ab" * 32, "no hex", "", None])
async def test_a_user_may_send_any_index_key(users: Users, index_key: str | None) -> None:
    answer = await users.post("reader", "vectors/num_vectors", index_key=index_key)
    assert answer.json() == {"result": 1}


async def test_the_right_is_asked_for_before_the_contents(users: Users) -> None:
    assert (await users.post("reader", "vectors/upsert", items=[])).status_code == 403
    assert (await users.post("writer", "vectors/query", query_vectors=[])).status_code == 403
    assert (await users.post("reader", "vectors/upsert", items="x")).status_code == 422


# ---------------------------------------------------------------- what users write and read


async def test_what_a_user_reads_is_what_the_root_reads(users: Users) -> None:
    fields: dict[str, Any] = {
        "query_vectors": [[1, 2, 3], [0, 0, 1]],
        "include": ["distance", "metadata"],
    }
    for route, sent in (("vectors/query", fields), ("vectors/get", {"ids": ["a"]})):
        answers = {
            who: (await users.post(who, route, **sent)).json() for who in ("root", "reader", "both")
        }
        assert answers["root"]["results"]
        assert answers["root"] == answers["reader"] == answers["both"]


@pytest.mark.parametrize("writer", ["writer", "both"])
@pytest.mark.parametrize("reader", ["root", "reader", "both"])
async def test_what_a_user_writes_everybody_who_may_reads(
    users: Users, writer: str, reader: str
) -> None:
    items = [
        {"id": f"{n}", "vector": [n, 1, 0.1], "contents": f"text {n}", "metadata": {"n": n}}
        for n in range(20)
    ]
    assert (await users.post(writer, "vectors/upsert", items=items)).status_code == 200
    got = (await users.post(reader, "vectors/get", ids=["7"])).json()["results"]
    assert got[0] | {"vector": None} == items[7] | {"vector": None}
    assert got[0]["vector"] == pytest.approx([7, 1, 0.1])
    found = await users.post(
        reader, "vectors/query", query_vectors=[7, 1, 0.1], top_k=2, include=["metadata"]
    )
    assert found.json()["results"][0] == {"id": "7", "metadata": {"n": 7}}
    assert len((await users.post(reader, "vectors/list_ids")).json()["ids"]) == 21
    assert (await users.post(writer, "vectors/delete", ids=["7"])).status_code == 200
    assert (await users.post(reader, "vectors/get", ids=["7"])).json() == {"results": []}


async def test_filters_find_what_a_writer_wrote(users: Users) -> None:
    items = [
        {"id": f"{n}", "vector": [n, 1, 1], "metadata": {"n": n, "kind": "xy"[n % 2]}}
        for n in range(10)
    ]
    assert (await users.post("writer", "vectors/upsert", items=items)).status_code == 200
    for condition, expected in (
        ({"kind": "y"}, {"1", "3", "5", "7", "9"}),
        ({"n": {"$gt": 7}}, {"8", "9"}),
    ):
        fields: dict[str, Any] = {"query_vectors": [0, 1, 1], "filters": condition}
        for who in ("root", "reader"):
            found = (await users.post(who, "vectors/query", **fields)).json()["results"]
            assert {match["id"] for match in found} == expected
        assert (await users.post("writer", "vectors/query", **fields)).status_code == 403


async def test_a_writer_may_be_the_first_to_write(guarded_client: Client) -> None:
    users = Users(RemoteIndex(guarded_client))
    await users.post("root", "indexes/create", metric="cosine", storage_precision="float16")
    await users.mint("writer", ["write"])
    assert (await users.post("writer", "vectors/upsert", items=ITEMS)).status_code == 200
    assert (await users.post("root", "vectors/get", ids=["a"])).json()["results"] == ITEMS
    assert (await users.post("writer", "indexes/describe")).json()["dimension"] == 3


async def test_items_of_writers_and_others_are_searched_together(users: Users) -> None:
    for n in range(30):
        who = ("root", "writer", "both")[n % 3]
        item = {"id": f"{n}", "vector": [n, 0, 0]}
        assert (await users.post(who, "vectors/upsert", items=[item])).status_code == 200
    found = (await users.post("reader", "vectors/query", query_vectors=[10, 0, 0], top_k=5)).json()[
        "results"
    ]
    assert {match["id"] for match in found} == {"8", "9", "10", "11", "12"}


# ---------------------------------------------------------------- minting, listing, revoking


async def test_a_token_has_the_contracts_form(users: Users) -> None:
    token = users.tokens["reader"]
    assert token.startswith("cdbk_1_")
    body = base64.urlsafe_b64decode(token.removeprefix("cdbk_1_") + "==")
    assert len(body) == 56
    assert body[:16].hex() == users.ids["reader"]
    tag_key = hkdf.expand(hkdf.extract(b"", ROOT_KEY.encode()), "user-token")
    assert body[-8:] == hmac.digest(tag_key, b"1" + body[:48], "sha256")[:8]


async def test_the_list_names_users_and_their_permissions(users: Users) -> None:
    headers = {"X-Index-Key": users.root.key}
    answer = await users.request("root", "GET", f"indexes/{users.root.name}/users", **headers)
    assert answer.json() == {
        "users": [
            {"user_id": users.ids["reader"], "permissions": ["read"]},
            {"user_id": users.ids["writer"], "permissions": ["write"]},
            {"user_id": users.ids["both"], "permissions": ["read", "write"]},
        ]
    }


@pytest.mark.parametrize("permissions", [[], ["admin"], ["read", "Write"], [""], ["read "]])
async def test_unknown_permissions_are_refused(users: Users, permissions: list[str]) -> None:
    body = {"permissions": permissions, "index_key": users.root.key}
    answer = await users.request("root", "POST", f"indexes/{users.root.name}/users", body)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "body", [{}, {"permissions": "read"}, {"permissions": None}, {"permissions": [1]}, []]
)
async def test_a_user_is_made_of_a_whole_body(users: Users, body: Any) -> None:
    answer = await users.request("root", "POST", f"indexes/{users.root.name}/users", body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize(
    ("key", "status"),
    [(None, 401), ("", 401), ("ab" * 32, 401), ("zz", 400), ("ab" * 31, 400), ("ä" * 64, 400)],
)
async def test_users_are_managed_with_the_index_key(
    users: Users, key: str | None, status: int
) -> None:
    path = f"indexes/{users.root.name}/users"
    body = {"permissions": ["read"], "index_key": key}
    answers = [await users.request("root", "POST", path, body)]
    headers = {"X-API-Key": ROOT_KEY} | ({} if key is None else {"X-Index-Key": key})
    sent: Any = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    for method, more in (("GET", ""), ("DELETE", f"/{users.ids['reader']}")):
        answers.append(await users.root.client.request(method, f"/v1/{path}{more}", headers=sent))
    assert [answer.status_code for answer in answers] == [status] * 3
    assert (await users.post("reader", "vectors/num_vectors")).status_code == 200


@pytest.mark.parametrize(
    "user_id", ["zz", "ab" * 15, "ab" * 17, "a", " " * 32, "%20" * 32, "ab%2Fcd", "é"]
)
async def test_a_user_id_that_cannot_be_is_refused(users: Users, user_id: str) -> None:
    path = f"indexes/{users.root.name}/users/{user_id}"
    answer = await users.request("root", "DELETE", path, **{"X-Index-Key": users.root.key})
    assert answer.status_code == 400, answer.text


async def test_an_unknown_user_is_gone_already(users: Users) -> None:
    path = f"indexes/{users.root.name}/users/{'ab' * 16}"
    answer = await users.request("root", "DELETE", path, **{"X-Index-Key": users.root.key})
    assert (answer.status_code, answer.content) == (204, b"")


async def test_a_user_of_another_index_stays(users: Users) -> None:
    other = await new_users(users.root.client)
    path = f"indexes/{users.root.name}/users/{other.ids['reader']}"
    assert (
        await users.request("root", "DELETE", path, **{"X-Index-Key": users.root.key})
    ).status_code == 204
    assert (await other.post("reader", "vectors/num_vectors")).status_code == 200


async def test_users_of_an_unknown_index_are_not_found(users: Users) -> None:
    for name in ("no such index", "a%00b", "a%2Fb", "%FF"):
        body = {"permissions": ["read"], "index_key": users.root.key}
        assert (
            await users.request("root", "POST", f"indexes/{name}/users", body)
        ).status_code == 404
        answer = await users.request(
            "root", "GET", f"indexes/{name}/users", **{"X-Index-Key": users.root.key}
        )
        assert answer.status_code == 404


@pytest.mark.parametrize(
    "name", ["a/b", "/", "a//b/", "users/users", "ключ 🔒", "a%2Fb", "a?b#c", "a%b", "...", "a+b"]
)
async def test_an_index_of_any_name_can_have_users(guarded_client: Client, name: str) -> None:
    users = await new_users(guarded_client, name=name)
    path = f"indexes/{quote(name, safe='')}/users"
    listed = await users.request("root", "GET", path, **{"X-Index-Key": users.root.key})
    assert len(listed.json()["users"]) == 3
    assert (await users.post("reader", "vectors/num_vectors")).json() == {"result": 0}
    assert (await users.revoke("reader")).status_code == 204
    assert (await users.post("reader", "vectors/num_vectors")).status_code == 403
    assert (await users.post("root", "indexes/delete")).status_code == 200


async def test_an_open_service_has_no_users(client: Client) -> None:
    index = RemoteIndex(client)
    await index.post("indexes/create")
    path, key = f"/v1/indexes/{index.name}/users", {"X-Index-Key": index.key, "X-API-Key": ROOT_KEY}
    answers = [
        await client.post(path, json={"permissions": ["read"], "index_key": index.key}),
        await client.get(path, headers=key),
        await client.delete(f"{path}/{'ab' * 16}", headers=key),
    ]
    for answer in answers:
        assert answer.status_code == 403
        assert "permission denied" in answer.json()["detail"]


# ---------------------------------------------------------------- tokens that open nothing


@pytest.fixture
async def two_workers(service: Serve, module_dsn: Any) -> AsyncIterator[tuple[Users, Client]]:
    """Users of one worker, and a client of another one on the same database."""
    settings = Settings(database_url=module_dsn(), workers=1, pool_size=2, root_key=ROOT_KEY)
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(serve(settings)) for _ in range(2)]
        users = await new_users(first)
        assert (await users.post("root", "vectors/upsert", items=ITEMS)).status_code == 200
        yield users, second


async def test_a_revoked_token_fails_on_the_next_request_of_every_worker(
    two_workers: tuple[Users, Client],
) -> None:
    users, second = two_workers
    elsewhere = Users(RemoteIndex(second, name=users.root.name), users.tokens, users.ids)
    for who, route in (
        ("reader", "vectors/query"),
        ("writer", "vectors/upsert"),
        ("both", "vectors/get"),
    ):
        fields, _ = ROUTES[route]
        # Once, so that both workers remember the user.
        for view in (users, elsewhere):
            assert (await view.post(who, route, **fields)).status_code == 200
        assert (await users.revoke(who)).status_code == 204
        for view in (elsewhere, users):
            for sent, (body, _) in ROUTES.items():
                answer = await view.post(who, sent, **body)
                assert answer.status_code == 403, sent
            for path in ("indexes/list", "indexes/training-status", "embedding-models"):
                assert (await view.request(who, "GET", path)).status_code == 403, path
    assert (await elsewhere.post("root", "vectors/num_vectors")).status_code == 200


async def test_a_revoked_writers_items_stay_readable(users: Users) -> None:
    items = [{"id": "w", "vector": [3, 2, 1], "contents": "kept", "metadata": {"kept": True}}]
    await users.post("writer", "vectors/upsert", items=items)
    await users.revoke("writer")
    got = (await users.post("reader", "vectors/get", ids=["w"])).json()["results"]
    assert got == items


async def test_deleting_an_index_deletes_its_users(users: Users) -> None:
    assert (await users.post("reader", "vectors/num_vectors")).status_code == 200
    assert (await users.post("root", "indexes/delete")).status_code == 200
    assert (await users.post("reader", "vectors/num_vectors")).status_code == 403
    assert (await users.post("root", "indexes/create", dimension=3)).status_code == 200
    for who in ("reader", "writer", "both"):
        assert (await users.post(who, "indexes/describe")).status_code == 403
    headers = {"X-Index-Key": users.root.key}
    answer = await users.request("root", "GET", f"indexes/{users.root.name}/users", **headers)
    assert answer.json() == {"users": []}


async def test_another_root_key_invalidates_all_tokens(service: Serve, module_dsn: Any) -> None:
    dsn = module_dsn()
    async with serve(Settings(database_url=dsn, workers=1, root_key=ROOT_KEY)) as client:
        users = await new_users(client)
    async with serve(Settings(database_url=dsn, workers=1, root_key="another root key")) as client:
        for token in users.tokens.values():
            body = {"index_name": users.root.name}
            answer = await client.post(
                "/v1/indexes/describe", json=body, headers={"X-API-Key": token}
            )
            assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API Key"})


def spoiled(token: str) -> dict[str, str]:
    middle = token[40]
    return {
        "last character missing": token[:-1],
        "half": token[: len(token) // 2],
        "prefix alone": "cdbk_1_",
        "no version": token.replace("cdbk_1_", "cdbk_"),
        "other version": token.replace("cdbk_1_", "cdbk_2_"),
        "prefix in capitals": token.replace("cdbk", "CDBK"),
        "one character more": token + "A",
        "padded": token + "=",
        "one character changed": token[:40] + ("A" if middle != "A" else "B") + token[41:],
        "user id changed": token[:10] + ("A" if token[10] != "A" else "B") + token[11:],
        "tag changed": token[:-4] + ("A" if token[-4] != "A" else "B") + token[-3:],
        "standard alphabet": token.replace("-", "+").replace("_", "/"),
        "space inside": token[:40] + " " + token[40:],
        "twice": token + token,
        "not ASCII": token[:40] + "é" + token[41:],
        "all zero": "cdbk_1_" + "A" * 75,
        "very long": "cdbk_1_" + "A" * 10_000,
    }


@pytest.mark.parametrize("spoil", spoiled("cdbk_1_" + "A" * 75))
@pytest.mark.parametrize("route", ["indexes/describe", "vectors/query", "indexes/create"])
async def test_a_spoiled_token_is_no_api_key(users: Users, spoil: str, route: str) -> None:
    token = spoiled(users.tokens["both"])[spoil]
    fields, _ = ROUTES.get(route, ({}, {}))
    body = {"index_name": users.root.name, "index_key": users.root.key, **fields}
    headers: Any = {b"X-API-Key": token.encode("latin-1")}
    answer = await users.root.client.post(f"/v1/{route}", json=body, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API Key"})


async def test_a_token_minted_by_somebody_else_is_no_api_key(users: Users) -> None:
    body = bytes.fromhex(users.ids["both"]) + bytes(32)
    tag_key = hkdf.expand(hkdf.extract(b"", b"guessed root key"), "user-token")
    token = body + hmac.digest(tag_key, b"1" + body, "sha256")[:8]
    users.tokens["forger"] = "cdbk_1_" + base64.urlsafe_b64encode(token).decode().rstrip("=")
    assert (await users.post("forger", "vectors/num_vectors")).status_code == 401


# ---------------------------------------------------------------- what the table holds


@pytest.mark.parametrize(
    "change",
    {
        "write granted with a copied key": "wrapped_write_key = wrapped_read_key",
        "write granted with a foreign key": (
            "wrapped_write_key = (SELECT wrapped_write_key FROM users"
            " WHERE wrapped_write_key IS NOT NULL LIMIT 1)"
        ),
        "write granted with nothing": "wrapped_write_key = ''",
        "read key damaged": r"wrapped_read_key = wrapped_read_key || '\x00'",
        "read key of an older version": r"wrapped_read_key = '\x01' || substr(wrapped_read_key, 2)",
        "read key of another version": r"wrapped_read_key = '\x03' || substr(wrapped_read_key, 2)",
    }.values(),
)
async def test_no_right_is_won_by_changing_the_table(
    service: Serve, module_dsn: Any, change: str
) -> None:
    dsn = module_dsn()
    async with serve(Settings(database_url=dsn, workers=1, root_key=ROOT_KEY)) as client:
        users = await new_users(client)
        with psycopg.connect(dsn) as connection:
            user_id = bytes.fromhex(users.ids["reader"])
            connection.execute(f"UPDATE users SET {change} WHERE user_id = %s", (user_id,))  # noqa: S608
        assert (await users.post("reader", "vectors/upsert", items=ITEMS)).status_code == 403
        assert (await users.post("reader", "vectors/num_vectors")).status_code == 403
        assert (await users.post("both", "vectors/num_vectors")).json() == {"result": 0}


async def test_neither_token_nor_key_is_stored(service: Serve, module_dsn: Any) -> None:
    dsn = module_dsn()
    async with serve(Settings(database_url=dsn, workers=1, root_key=ROOT_KEY)) as client:
        users = await new_users(client)
        await users.post("writer", "vectors/upsert", items=ITEMS)
        with psycopg.connect(dsn) as connection:
            rows = connection.execute("SELECT users::text FROM users").fetchall()
    stored = "".join(text for (text,) in rows)
    for token in users.tokens.values():
        body = base64.urlsafe_b64decode(token.removeprefix("cdbk_1_") + "==")
        assert body[:16].hex() in stored
        assert body[16:48].hex() not in stored
    assert users.root.key not in stored


async def test_users_are_made_and_revoked_in_the_audit_log(service: Serve, module_dsn: Any) -> None:
    dsn = module_dsn()
    async with serve(Settings(database_url=dsn, workers=1, root_key=ROOT_KEY)) as client:
        users = await new_users(client)
        await users.revoke("reader")
        await users.post("writer", "vectors/upsert", items=ITEMS)
        with psycopg.connect(dsn) as connection:
            rows = connection.execute(
                "SELECT caller, operation FROM audit_log WHERE index_name = %s"
                " ORDER BY recorded_at",
                (users.root.name,),
            ).fetchall()
    operations = [operation for _, operation in rows]
    assert operations == [
        "create",
        "create_user",
        "create_user",
        "create_user",
        "delete_user",
        "upsert",
    ]
    assert rows[-1][0] == f"user {users.ids['writer']}"
