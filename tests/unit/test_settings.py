from dataclasses import fields
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.settings import Settings, variables_of


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()


def test_each_variable_fills_its_field() -> None:
    env = {
        "HOST": "0.0.0.0",  # noqa: S104
        "PORT": "9000",
        "DATABASE_URL": "postgresql://db/sealdex",
        "SEALDEX_DATA_DIR": "/data",
        "SEALDEX_POOL_TIMEOUT_S": "2.5",
        "SEALDEX_PREPARE_THRESHOLD": "-1",
        "SEALDEX_MIGRATE": "true",
        "AUTO_TRAIN_DISABLED": "1",
        "SEALDEX_SKETCH_BITS": "768",
        "UNRELATED": "ignored",
    }
    assert Settings.from_env(env) == Settings(
        host="0.0.0.0",  # noqa: S104
        port=9000,
        database_url="postgresql://db/sealdex",
        data_dir=Path("/data"),
        pool_timeout_s=2.5,
        prepare_threshold=-1,
        migrate=True,
        auto_train_disabled=True,
        sketch_bits=768,
    )


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_env({"SEALDEX_ROOT_KEY": "", "PORT": ""}) == Settings()


def test_our_name_is_stronger_than_the_one_it_replaces() -> None:
    env = {"CYBORGDB_SERVICE_ROOT_KEY": "theirs", "SEALDEX_ROOT_KEY": "ours"}
    assert Settings.from_env(env).root_key == "ours"
    del env["SEALDEX_ROOT_KEY"]
    assert Settings.from_env(env).root_key == "theirs"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("SEALDEX_WORKERS", "-1"),
        ("SEALDEX_POOL_SIZE", "0"),
        ("SEALDEX_SKETCH_NOISE", "0.5"),
        ("SEALDEX_SKETCH_BITS", "64001"),
        ("AUTO_TRAIN_DISABLED", "perhaps"),
        ("SEALDEX_MAX_BODY_BYTES", "1MB"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_the_name_of_its_variable(
    variable: str, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable}="):
        Settings.from_env({variable: text})


def test_secrets_are_not_shown() -> None:
    settings = Settings(root_key="secret-key", database_url="postgresql://u:secret-password@db/x")
    assert "secret" not in repr(settings)


def test_no_two_fields_share_a_variable() -> None:
    variables = [variable for item in fields(Settings) for variable in variables_of(item.name)]
    assert len(variables) == len(set(variables))
