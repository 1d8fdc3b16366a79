"""A model hub of our own: the routes that its client asks for one model, on loopback."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_COMMIT = "c0ffee" + "0" * 34


def content(name: str, directory: Path, path: str) -> bytes | None:
    """Return what the hub has at `path`, if anything."""
    sizes = {
        file.relative_to(directory).as_posix(): file.stat().st_size for file in directory.rglob("*")
    }
    paths = sorted(one for one in sizes if (directory / one).is_file())
    api, files = f"/api/models/{name}", f"/{name}/resolve/{_COMMIT}/"
    if path in {api, f"{api}/revision/{_COMMIT}", f"{api}/revision/main"}:
        siblings = [{"rfilename": one} for one in paths]
        return json.dumps(
            {"id": name, "modelId": name, "sha": _COMMIT, "siblings": siblings}
        ).encode()
    if path == f"{api}/tree/{_COMMIT}":
        return json.dumps(
            [{"type": "file", "path": one, "size": sizes[one], "oid": "0" * 40} for one in paths]
        ).encode()
    if path.startswith(files) and path.removeprefix(files) in paths:
        return (directory / path.removeprefix(files)).read_bytes()
    return None


@contextmanager
def serve_hub(name: str, directory: Path) -> Iterator[str]:
    """Give the address of a hub that has the model in `directory` under `name`, and nothing
    else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            body = content(name, directory, self.path.partition("?")[0])
            if body is None:
                self._send(404, b"{}", with_body=with_body, **{"X-Error-Code": "RepoNotFound"})
            else:
                self._send(200, body, with_body=with_body)

        def _send(self, status: int, body: bytes, *, with_body: bool, **headers: str) -> None:
            self.send_response(status)
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            for header, value in {"ETag": etag, "X-Repo-Commit": _COMMIT, **headers}.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
