"""The compose file: its mounts are there, memory is limited, the service is no superuser."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


@pytest.mark.parametrize("name", ["sealdex", "database"])
def test_every_container_has_a_limit_of_memory_without_swap(
    services: dict[str, Any], name: str
) -> None:
    assert services[name]["mem_limit"]
    assert services[name]["memswap_limit"] == services[name]["mem_limit"]


def test_the_service_does_not_log_in_as_the_superuser(services: dict[str, Any]) -> None:
    url = urlsplit(services["sealdex"]["environment"]["DATABASE_URL"].partition("${")[0])
    assert url.netloc == "sealdex:"
    assert services["database"]["environment"]["POSTGRES_USER"] == "postgres"


def test_the_files_that_are_mounted_are_there_and_can_be_run(services: dict[str, Any]) -> None:
    mounts = [volume for volume in services["database"]["volumes"] if volume.startswith("./")]
    assert mounts
    for mount in mounts:
        source, target, mode = mount.split(":")
        assert mode == "ro"
        assert target.startswith("/docker-entrypoint-initdb.d/")
        # The image runs what may be run, and takes in what may not.
        assert (ROOT / source).stat().st_mode & 0o111 == 0o111
