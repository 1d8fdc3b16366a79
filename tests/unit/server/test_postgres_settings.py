import pytest

from app.server.postgres_settings import server_settings

GB = 1024**3


@pytest.mark.parametrize(
    ("memory", "shared_buffers", "maintenance_work_mem"),
    [(GB // 4, "128MB", "64MB"), (4 * GB, "1024MB", "256MB"), (256 * GB, "4096MB", "1024MB")],
)
def test_memory_settings_follow_the_machine_between_bounds(
    memory: int, shared_buffers: str, maintenance_work_mem: str
) -> None:
    settings = server_settings(memory, 100)
    assert settings["shared_buffers"] == shared_buffers
    assert settings["maintenance_work_mem"] == maintenance_work_mem


def test_an_acknowledged_write_is_on_disk() -> None:
    settings = server_settings(GB, 100)
    assert {settings[name] for name in ("fsync", "synchronous_commit", "full_page_writes")} == {
        "on"
    }
