"""A client that remembers what was acknowledged, and knows what may be true when no answer came."""

import random
import threading
from dataclasses import dataclass, field
from typing import Any

import httpx

Item = dict[str, Any]
# What each id holds; None is "no such item".
State = dict[str, Item | None]

N_IDS = 60
_MAX_BATCH = 25
_TIMEOUT_S = 20
_SHARE_OF_UPSERTS = 0.6
_SHARE_OF_WRITES = 0.8


class Broken(Exception):
    """A promise was broken; the message says which."""


@dataclass
class Client:
    """Writes to ids of its own, one request after the other, until one is not answered with 200."""

    url: str
    index: dict[str, str]
    number: int
    state: State = field(default_factory=dict)
    # The batch that was sent and not acknowledged: all of it is true, or none of it.
    in_doubt: State = field(default_factory=dict)
    n_acknowledged: int = 0
    n_in_doubt: int = 0
    version: int = 0
    failure: str | None = None

    def work(self, rng: random.Random, stop: threading.Event) -> None:
        """Send requests until told to stop or let down; a broken promise is kept in `failure`."""
        try:
            with httpx.Client(base_url=f"{self.url}/v1/", timeout=_TIMEOUT_S) as http:
                while not stop.is_set() and self._step(http, rng):
                    pass
        except Broken as broken:
            self.failure = str(broken)

    def verify(self, http: httpx.Client) -> None:
        """Compare all that is stored with what was acknowledged. Raises `Broken`."""
        stored = self._stored(http, [self._id(number) for number in range(N_IDS)])
        if self.in_doubt:
            found = {name: stored[name] for name in self.in_doubt}
            before = {name: self.state.get(name) for name in self.in_doubt}
            if found not in (self.in_doubt, before):
                raise Broken(
                    f"client {self.number}: half of a batch is there: {differing(found, before)}"
                )
            self.state |= found
            self.in_doubt = {}
        wanted = {name: self.state.get(name) for name in stored}
        if stored != wanted:
            raise Broken(f"client {self.number}: not as acknowledged: {differing(stored, wanted)}")

    def held(self) -> dict[str, Item]:
        """The items that are stored."""
        return {name: item for name, item in self.state.items() if item is not None}

    def _step(self, http: httpx.Client, rng: random.Random) -> bool:
        """Send one request; tell whether to go on."""
        kind = rng.random()
        names = [
            self._id(number) for number in rng.sample(range(N_IDS), rng.randint(1, _MAX_BATCH))
        ]
        if kind < _SHARE_OF_UPSERTS:
            self.version += 1
            return self._write(http, "upsert", {name: self._item(name) for name in names})
        if kind < _SHARE_OF_WRITES:
            return self._write(http, "delete", dict.fromkeys(names))
        return self._read(http, names)

    def _write(self, http: httpx.Client, route: str, changes: State) -> bool:
        body: dict[str, Any] = (
            {"ids": list(changes)} if route == "delete" else {"items": list(changes.values())}
        )
        self.in_doubt = changes
        answer = self._post(http, route, body)
        if answer is None:
            self.n_in_doubt += 1
            return False
        self.state |= changes
        self.in_doubt = {}
        self.n_acknowledged += 1
        return True

    def _read(self, http: httpx.Client, names: list[str]) -> bool:
        answer = self._post(http, "get", {"ids": names})
        if answer is None:
            return False
        found = {item["id"]: item for item in answer["results"]}
        wanted = {name: item for name in names if (item := self.state.get(name)) is not None}
        if found != wanted:
            raise Broken(
                f"client {self.number}: read something else than was acknowledged: "
                f"{differing(found, wanted)}"
            )
        return True

    def _stored(self, http: httpx.Client, names: list[str]) -> State:
        answer = self._post(http, "get", {"ids": names})
        if answer is None:
            raise Broken("the service does not answer after the restart")
        found = {item["id"]: item for item in answer["results"]}
        return {name: found.get(name) for name in names}

    def _post(self, http: httpx.Client, route: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer, or None when there was none or it says "not now". Raises `Broken` for any
        other refusal.
        """
        try:
            answer = http.post(f"vectors/{route}", json={**self.index, **body})
        except httpx.TransportError:
            return None
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        if answer.status_code != httpx.codes.OK:
            raise Broken(f"{route} was answered {answer.status_code}: {answer.text}")
        found: dict[str, Any] = answer.json()
        return found

    def _id(self, number: int) -> str:
        return f"{self.number}-{number}"

    def _item(self, name: str) -> Item:
        """A version of an item that no other equals in any part; all numbers are exact in
        float32."""
        number = int(name.split("-")[1])
        return {
            "id": name,
            "vector": [float(self.number), float(number), self.version / 8, 1.0],
            "contents": f"{name} version {self.version}",
            "metadata": {"version": self.version, "client": self.number},
        }


def differing(found: State | dict[str, Item], wanted: State | dict[str, Item]) -> str:
    """Up to three entries that are not the same in both."""
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return "; ".join(
        f"{name}: found {found.get(name)}, expected {wanted.get(name)}"
        for name in sorted(names)[:3]
    )
