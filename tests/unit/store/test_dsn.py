import pytest

from app.errors import ConfigurationError
from app.store.pg.dsn import database_url, libpq_dsn


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_scheme_is_the_same_database(scheme: str) -> None:
    url = database_url(f"{scheme}://me:p%40ss@db:6432/sealdex?sslmode=require")
    assert url.drivername == "postgresql+psycopg"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "me",
        "p@ss",
        "db",
        6432,
        "sealdex",
    )
    assert url.query == {"sslmode": "require"}
    assert libpq_dsn(f"{scheme}://me@db/x") == "postgresql://me@db/x"


@pytest.mark.parametrize("host", ["%2Frun%2Fa%20b%26c", "/run/a b%26c"])
def test_a_socket_directory_may_have_any_name(host: str) -> None:
    assert database_url(f"postgresql://me@/x?host={host}").query["host"] == "/run/a b&c"


@pytest.mark.parametrize(
    "dsn", ["mysql://u:hunter2@db/x", "u:hunter2@db", "postgresql://u:hunter2@db:port/x"]
)
def test_what_is_no_address_of_a_postgresql_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        database_url(dsn)
    assert "hunter2" not in str(caught.value)
