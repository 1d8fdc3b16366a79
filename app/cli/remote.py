"""One index of a running service, for commands that talk to it over HTTP as any client does.

Keys come from the environment or a file, never from the command line, which every user of the
machine can read: `SEALDEX_INDEX_KEY` or `--index-key-file`, and `SEALDEX_API_KEY` (else the root
key of the settings). The address comes from the command line or the environment alone: a `.env` or
YAML file of the working directory may be somebody else's, and would say where the keys are sent.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec

from app.configuration import Configuration
from app.errors import ConfigurationError

_TIMEOUT_S = 600.0
_ATTEMPTS = 6
_FIRST_WAIT_S = 0.5
_MAX_WAIT_S = 10.0
_BUSY = frozenset({429, 503})
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound
_JSON = {"Content-Type": "application/json"}


class Refused(Exception):
    """The service answered with an error; the message is its own."""


class Remote:
    """One index of a running service."""

    def __init__(self, options: argparse.Namespace, configuration: Configuration) -> None:
        self.url = address(options.url, configuration)
        self.name: str = options.index
        self._access = {"index_name": options.index, **_index_key(options)}
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=_api_key(configuration),
            timeout=_TIMEOUT_S,
            verify=os.environ.get("SEALDEX_CA_FILE") or True,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def post(self, route: str, **fields: Any) -> dict[str, Any]:
        """Return the answer of a route; tries again while the service is busy or away.

        Raises `Refused`.
        """
        body = msgspec.json.encode({**self._access, **fields})
        reason, wait_s = "", _FIRST_WAIT_S
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _MAX_WAIT_S)
            answer = await self._attempt(route, body)
            if isinstance(answer, httpx.Response):
                if answer.status_code not in _BUSY:
                    return _content(answer)
                wait_s = max(wait_s, float(answer.headers.get("Retry-After", 0)))
                reason = f"{answer.status_code} {_detail(answer)}"
            else:
                reason = str(answer) or type(answer).__name__
        raise Refused(f"{self.url} does not answer: {reason}")

    async def _attempt(self, route: str, body: bytes) -> httpx.Response | Exception:
        """Send a request once, and return the answer, or why there is none."""
        try:
            return await self._client.post(f"/v1/{route}", content=body, headers=_JSON)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return error


def run(
    work: Callable[[Remote, argparse.Namespace], Awaitable[int]],
    options: argparse.Namespace,
    configuration: Configuration,
) -> int:
    """Return the exit status of `work` on the index that the options name."""

    async def connected() -> int:
        async with Remote(options, configuration) as remote:
            return await work(remote, options)

    try:
        return asyncio.run(connected())
    except Refused as error:
        print(f"sealdex: {error}", file=sys.stderr)
        return 1


def address(url: str | None, configuration: Configuration) -> str:
    """Return the URL of the service: the option's, else the environment's, else the default."""
    if given := url or os.environ.get("SEALDEX_URL"):
        return given.rstrip("/")
    for name in ("host", "port", "ssl_cert_path"):
        if not configuration.is_of_this_call(name):
            print(
                f"sealdex: {name.upper()} of {configuration.origins[name]} is not used to find "
                "the service: set SEALDEX_URL",
                file=sys.stderr,
            )
    settings = configuration.of_this_call()
    scheme = "https" if settings.ssl_cert_path else "http"
    host = "127.0.0.1" if settings.host in _EVERY_ADDRESS else settings.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _api_key(configuration: Configuration) -> dict[str, str]:
    """Return the header with the API key, if there is a key."""
    key = os.environ.get("SEALDEX_API_KEY") or configuration.settings.root_key
    return {"X-API-Key": key} if key else {}


def _index_key(options: argparse.Namespace) -> dict[str, str]:
    """Return the field of a body with the index key, if there is a key."""
    if options.index_key_file is None:
        key = os.environ.get("SEALDEX_INDEX_KEY")
        return {"index_key": key} if key else {}
    try:
        return {"index_key": Path(options.index_key_file).read_text().strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--index-key-file {options.index_key_file}: cannot be read"
        ) from error


def _content(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != httpx.codes.OK:
        raise Refused(f"{answer.status_code} {_detail(answer)}")
    try:
        found: dict[str, Any] = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Refused("the answer is not one of this service") from error
    return found


def _detail(answer: httpx.Response) -> str:
    """Return why the service refused, in its own words."""
    try:
        detail = msgspec.json.decode(answer.content)["detail"]
        if isinstance(detail, str):
            return detail
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in detail)
    except (msgspec.DecodeError, KeyError, TypeError):
        return answer.reason_phrase
