"""A model hub of our own: the routes that its client asks for one model, on loopback."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_COMMIT = "c0ffee" + "0" * 34


@contextmanager
def serve_hub(name: str, directory: Path) -> Iterator[str]:
    """Give the address of a hub that has the model in `directory` under `name`, and nothing else."""
    paths = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            api, files = f"/api/models/{name}", f"/{name}/resolve/{_COMMIT}/"
            if path in {api, f"{api}/revision/{_COMMIT}", f"{api}/revision/main"}:
                siblings = [{"rfilename": one} for one in paths]
                body = json.dumps({"id": name, "modelId": name, "sha": _COMMIT, "siblings": siblings}).encode()
                self._send(200, body, with_body=with_body)
            elif path == f"{api}/tree/{_COMMIT}":
                sizes = {one: (directory / one).stat().st_size for one in paths}
                tree = [{"type": "file", "path": one, "size": size, "oid": "0" * 40} for one, size in sizes.items()]
                self._send(200, json.dumps(tree).encode(), with_body=with_body)
            elif path.startswith(files) and path.removeprefix(files) in paths:
                body = (directory / path.removeprefix(files)).read_bytes()
                self._send(200, body, with_body=with_body)
            else:
                self._send(404, b"{}", with_body=with_body, **{"X-Error-Code": "RepoNotFound"})

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
