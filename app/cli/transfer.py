"""`sealdex import`, `export` and `train`: they talk to a running service over HTTP, as any client does.

Keys come from the environment or a file, never from the command line, which every user of the
machine can read: `SEALDEX_INDEX_KEY` or `--index-key-file`, and `SEALDEX_API_KEY` (else the root
key of the settings).
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, Self

import httpx
import msgspec

from app.cli import sources
from app.cli.output import print_json, progress
from app.configuration import Configuration
from app.errors import ConfigurationError

_TIMEOUT_S = 600.0
_ATTEMPTS = 6
_MAX_WAIT_S = 10.0
# Bodies are JSON: about 12 bytes a number. Small enough to be far below any limit, large enough to
# be quick.
_BATCH_NUMBERS = 400_000
_MAX_BATCH = 2_000
_AT_A_TIME = 2
_EXPORT_BATCH = 500
_CHECKPOINT_SUFFIX = ".sealdex-import"


class Refused(Exception):
    """The service answered with an error; the message is its own."""


class Remote:
    """One index of a running service."""

    def __init__(self, options: argparse.Namespace, configuration: Configuration) -> None:
        settings = configuration.settings
        scheme = "https" if settings.ssl_cert_path else "http"
        host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104  # compared, not bound
        url = options.url or os.environ.get("SEALDEX_URL") or f"{scheme}://{host}:{settings.port}"
        api_key = os.environ.get("SEALDEX_API_KEY") or settings.root_key
        self.url = url.rstrip("/")
        self.name: str = options.index
        self._access = {"index_name": options.index}
        if (index_key := _index_key(options)) is not None:
            self._access["index_key"] = index_key
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"X-API-Key": api_key} if api_key else {},
            timeout=_TIMEOUT_S,
            verify=os.environ.get("SEALDEX_CA_FILE") or True,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def post(self, route: str, **fields: Any) -> dict[str, Any]:
        """Return the answer of a route; tries again while the service is busy or away. Raises `Refused`."""
        wait_s, reason = 0.5, ""
        body = msgspec.json.encode({**self._access, **fields})
        for attempt in range(_ATTEMPTS):
            try:
                answer = await self._client.post(
                    f"/v1/{route}", content=body, headers={"Content-Type": "application/json"}
                )
                if answer.status_code not in {429, 503}:
                    return _answer_of(answer)
                reason = f"{answer.status_code} {_detail(answer)}"
                wait_s = max(wait_s, float(answer.headers.get("Retry-After", 0)))
            except (httpx.TransportError, httpx.InvalidURL) as error:
                reason = str(error) or type(error).__name__
            if attempt < _ATTEMPTS - 1:
                await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
        raise Refused(f"{self.url} does not answer: {reason}")


def train(options: argparse.Namespace, configuration: Configuration) -> int:
    """Train an index and wait for the end."""

    async def run() -> int:
        async with Remote(options, configuration) as remote:
            fields = {} if options.n_lists is None else {"n_lists": options.n_lists}
            with progress("training", None, show=not options.json):
                answer = await remote.post("indexes/train", **fields)
            is_good = answer["status"] == "success"
            if options.json:
                print_json({**answer, "index": remote.name})
            else:
                print(answer["message"], file=sys.stdout if is_good else sys.stderr)
            return 0 if is_good else 1

    return _run(run())


def import_items(options: argparse.Namespace, configuration: Configuration) -> int:
    """Upsert the items of a file. An import that was interrupted goes on where it was."""
    source = sources.open_source(Path(options.file), options.ids)

    async def run() -> int:
        async with Remote(options, configuration) as remote:
            checkpoint = _Checkpoint(Path(options.file), remote)
            done = 0 if options.restart else checkpoint.read()
            with progress(
                "importing", source.n_items, show=not options.json, start=done
            ) as advance:
                n_items = await _import(remote, source, checkpoint, done, advance)
            checkpoint.remove()
            if options.json:
                print_json({"index": remote.name, "imported": n_items, "resumed_after": done})
            else:
                print(
                    f"Imported {n_items} items into '{remote.name}'"
                    + (f", after {done} before" if done else "")
                )
            return 0

    return _run(run())


async def _import(
    remote: Remote, source: sources.Source, checkpoint: "_Checkpoint", done: int, advance: Any
) -> int:
    """Send the items from number `done` on, some batches at a time; return how many."""
    position = done
    running: list[tuple[int, asyncio.Task[dict[str, Any]]]] = []

    async def finish_oldest() -> None:
        # Batches are acknowledged in order, so the number of items done is all there is to
        # remember.
        n_items, task = running.pop(0)
        await task
        nonlocal position
        position += n_items
        checkpoint.write(position)
        advance(n_items)

    try:
        for batch in _batches(source, done):
            running.append(
                (len(batch), asyncio.create_task(remote.post("vectors/upsert", items=batch)))
            )
            await asyncio.sleep(0)
            if len(running) >= _AT_A_TIME:
                await finish_oldest()
        while running:
            await finish_oldest()
    except Refused as error:
        raise Refused(
            f"{error} (in the batch after item {position}; the items before it are stored)"
        ) from error
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)
    return position - done


def _batches(source: sources.Source, start: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    n_numbers = 0
    for item in source.items(start):
        batch.append(item)
        n_numbers += len(item.get("vector") or ()) + 100
        if n_numbers >= _BATCH_NUMBERS or len(batch) >= _MAX_BATCH:
            yield batch
            batch, n_numbers = [], 0
    if batch:
        yield batch


def export_items(options: argparse.Namespace, configuration: Configuration) -> int:
    """Write all items as JSON, one a line: id, vector, contents and metadata."""

    async def run() -> int:
        async with Remote(options, configuration) as remote:
            ids = (await remote.post("vectors/list_ids"))["ids"]
            n_written = 0
            with (
                _output(options.output) as stream,
                progress("exporting", len(ids), show=not options.json) as advance,
            ):
                for start in range(0, len(ids), _EXPORT_BATCH):
                    part = ids[start : start + _EXPORT_BATCH]
                    found = await remote.post(
                        "vectors/get", ids=part, include=["vector", "contents", "metadata"]
                    )
                    for item in found["results"]:
                        stream.write(msgspec.json.encode(_without_blanks(item)) + b"\n")
                    n_written += len(found["results"])
                    advance(len(part))
                stream.flush()
            if options.output != "-":
                _finish(options.output)
                if options.json:
                    print_json({"index": remote.name, "exported": n_written})
                else:
                    print(f"Exported {n_written} items of '{remote.name}' to {options.output}")
            return 0

    return _run(run())


def _without_blanks(item: dict[str, Any]) -> dict[str, Any]:
    """Return `item` without contents and metadata that it does not have."""
    return {name: value for name, value in item.items() if value not in ("", {}) or name == "id"}


def _finish(path: str) -> None:
    Path(_partial(path)).replace(path)


def _partial(path: str) -> str:
    return f"{path}.part"


def _output(path: str) -> AbstractContextManager[IO[bytes]]:
    if path == "-":
        return nullcontext(sys.stdout.buffer)
    try:
        # Nobody else may read what has just been opened.
        return os.fdopen(
            os.open(_partial(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
        )
    except OSError as error:
        raise ConfigurationError(f"--output {path}: cannot be written: {error.strerror}") from error


class _Checkpoint:
    """A file beside the one that is imported: how many of its items are stored in which index."""

    def __init__(self, path: Path, remote: Remote) -> None:
        stat = path.stat()
        self._path = path.with_name(path.name + _CHECKPOINT_SUFFIX)
        self._what = {
            "url": remote.url,
            "index": remote.name,
            "size": stat.st_size,
            "changed_ns": stat.st_mtime_ns,
        }

    def read(self) -> int:
        """Return how many items are stored; 0 for another index or a file that has changed since."""
        try:
            found = msgspec.json.decode(self._path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return 0
        n_done = found.pop("n_done", 0) if isinstance(found, dict) else 0
        return n_done if found == self._what else 0

    def write(self, n_done: int) -> None:
        """Remember that the first `n_done` items are stored."""
        partial = self._path.with_name(self._path.name + ".part")
        partial.write_bytes(msgspec.json.encode({**self._what, "n_done": n_done}))
        partial.replace(self._path)

    def remove(self) -> None:
        """Forget: everything is stored."""
        self._path.unlink(missing_ok=True)


def _run(work: Any) -> int:
    try:
        result: int = asyncio.run(work)
    except Refused as error:
        print(f"sealdex: {error}", file=sys.stderr)
        return 1
    return result


def _answer_of(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != httpx.codes.OK:
        raise Refused(f"{answer.status_code} {_detail(answer)}")
    try:
        found: dict[str, Any] = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Refused("the answer is not one of this service") from error
    return found


def _detail(answer: httpx.Response) -> str:
    try:
        detail = msgspec.json.decode(answer.content)["detail"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return answer.reason_phrase
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in detail)


def _index_key(options: argparse.Namespace) -> str | None:
    if options.index_key_file is None:
        return os.environ.get("SEALDEX_INDEX_KEY") or None
    try:
        return Path(options.index_key_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--index-key-file {options.index_key_file}: cannot be read"
        ) from error
