"""Models from the hub, by a running service: the hub's library reads its variables when it is
imported.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.embeddings.hub import serve_hub
from tests.service.conftest import Service, new_service

KEY = bytes(range(32)).hex()
NAME = "example/small-model"

Start = Callable[..., Service]


@pytest.fixture
def hub(weights_dir: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a hub with one model, which has its weights in two formats."""
    directory = tmp_path / "on-the-hub"
    shutil.copytree(weights_dir, directory, ignore=shutil.ignore_patterns(".*"))
    (directory / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"and in a third")
    with serve_hub(NAME, directory) as address:
        yield address


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts services that share one cache of the hub."""
    with ExitStack() as stack:

        def start(hub: str, **environment: str) -> Service:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sealdex-test-"))
            settings = {
                "SEALDEX_WORKERS": "1",
                "HF_ENDPOINT": hub,
                "HF_HUB_OFFLINE": "0",
                **environment,
            }
            service = new_service(Path(directory), HF_HOME=str(tmp_path / "hf"), **settings)
            stack.callback(service.stop)
            service.start()
            return service

        yield start


def create(service: Service, model: str) -> httpx.Response:
    return service.post(
        "indexes/create", {"index_name": "texts", "index_key": KEY, "embedding_model": model}
    )


def test_a_model_is_fetched_once_and_then_listed(hub: str, start: Start, tmp_path: Path) -> None:
    service = start(hub)
    assert httpx.get(f"{service.url}/v1/embedding-models").json() == {"models": []}
    answer = create(service, NAME)
    assert answer.status_code == 200, answer.text
    listed = [{"name": NAME, "dimension": 384, "max_seq_length": 256}]
    assert httpx.get(f"{service.url}/v1/embedding-models").json() == {"models": listed}
    cached = {file.name for file in (tmp_path / "hf").rglob("*")}
    assert "model.safetensors" in cached
    assert not cached & {"pytorch_model.bin", "model.onnx"}

    # From the cache, by its short name, with nothing to ask.
    offline = start("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert create(offline, "small-model").status_code == 200


@pytest.mark.parametrize(
    ("model", "environment", "reason"),
    [
        ("example/other-model", {}, "no such model"),
        (NAME, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        (NAME, {"SEALDEX_ALLOW_MODEL_DOWNLOADS": "false"}, "SEALDEX_ALLOW_MODEL_DOWNLOADS"),
        (NAME, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        ("no name/of a/model", {}, "no name"),
    ],
)
def test_what_cannot_be_fetched_is_unknown_and_says_why(
    hub: str, start: Start, model: str, environment: dict[str, str], reason: str
) -> None:
    answer = create(start(hub, **environment), model)
    assert answer.status_code == 400, answer.text
    assert "Available: none" in answer.json()["detail"]
    assert reason in answer.json()["detail"]
