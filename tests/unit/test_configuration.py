from pathlib import Path

import pytest

from app.configuration import Configuration
from app.errors import ConfigurationError
from app.settings import Settings


def load(directory: Path, env: dict[str, str] | None = None, **options: str) -> Configuration:
    return Configuration.load(options, env or {}, directory)


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_the_strongest_source_wins_and_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "sealdex.yaml",
        "service: {port: 1, host: 127.0.0.2, pool_size: 3, sealdex_max_top_k: 4}",
    )
    write(tmp_path, ".env", "PORT=2\nHOST=127.0.0.3\n# a comment\nexport SEALDEX_POOL_SIZE='5'\n")
    found = load(tmp_path, {"PORT": "6", "SEALDEX_POOL_SIZE": ""}, port="7")
    assert found.settings == Settings(port=7, host="127.0.0.3", pool_size=5, max_top_k=4)
    assert {name: place for name, place in found.origins.items() if place != "default"} == {
        "port": "command line",
        "host": ".env",
        "pool_size": ".env",
        "max_top_k": str(path),
    }


def test_the_workers_read_the_same_from_their_environment(tmp_path: Path) -> None:
    write(
        tmp_path,
        "cyborgdb.yml",
        "service:\n  auto_train_disabled: yes\n  root_key: from-file\n  sketch_noise: 0.2\n",
    )
    write(tmp_path, ".env", "CYBORGDB_SERVICE_LOG_LEVEL=debug\n")
    found = load(tmp_path, {"SEALDEX_DATA_DIR": "/data"})
    assert Settings.from_env(found.environment) == found.settings
    assert found.settings.root_key == "from-file"
    assert found.settings.auto_train_disabled


def test_a_named_file_goes_before_those_in_their_places(tmp_path: Path) -> None:
    write(tmp_path, "cyborgdb.yaml", "service: {port: 1}")
    write(tmp_path, "other.yaml", "service: {port: 2}")
    assert load(tmp_path).settings.port == 1
    assert load(tmp_path, {"CYBORGDB_CONFIG_FILE": "other.yaml"}).settings.port == 2


@pytest.mark.parametrize(
    ("text", "port"),
    [("${P}", 9), ("${P:-7}", 9), ("${EMPTY:-7}", 7), ("${UNSET:-70}1", 701), ("1${UNSET:-}", 1)],
)
def test_references_in_the_file_are_filled(tmp_path: Path, text: str, port: int) -> None:
    write(tmp_path, "cyborgdb.yaml", f"service: {{port: '{text}'}}")
    write(tmp_path, ".env", "P=9\n")
    assert load(tmp_path, {"EMPTY": ""}).settings.port == port


@pytest.mark.parametrize("name", ["UNSET", "EMPTY"])
def test_a_reference_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "cyborgdb.yaml", f"service: {{root_key: 'x${{{name}}}'}}")
    with pytest.raises(ConfigurationError, match=rf"cyborgdb.yaml: \$\{{{name}}} is not set"):
        load(tmp_path, {"EMPTY": ""})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("service: [", "line 1: is no valid YAML"),
        ("- service", "must be a mapping"),
        ("service: 5", "`service` must be a mapping"),
        ("service: {port: {a: 1}}", "service.port must be a single value"),
        ("service: {port: 1.5}", "PORT='1.5'.*cyborgdb.yaml.*whole number"),
        ("service: {secret-\x00: 1}", "is no valid YAML"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_place(
    tmp_path: Path, text: str, message: str
) -> None:
    write(tmp_path, "cyborgdb.yaml", text)
    with pytest.raises(ConfigurationError, match=message):
        load(tmp_path)


def test_a_line_of_dotenv_that_does_not_fit_is_refused_with_its_number(tmp_path: Path) -> None:
    write(tmp_path, ".env", "PORT=1\n'no name\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        load(tmp_path)


def test_values_of_dotenv_are_taken_as_written(tmp_path: Path) -> None:
    write(tmp_path, ".env", "SEALDEX_ROOT_KEY='pa$$word${HOME}'\n")
    assert load(tmp_path, {"HOME": "/root"}).settings.root_key == "pa$$word${HOME}"


def test_names_nothing_reads_are_reported_once_each(tmp_path: Path) -> None:
    write(
        tmp_path,
        "cyborgdb.yaml",
        "service: {cpu_threads: 4, prot: 1}\nkms: {registry: {}}\nlicence: {}\n",
    )
    env = {
        "CYBORGDB_S3_BUCKET": "b",
        "SEALDEX_WORKRES": "2",
        "HOME": "/",
        "SEALDEX_API_KEY": "k",
        "REQUIRE_API_KEY": "",
    }
    notices = load(tmp_path, env).notices
    assert [notice.split()[0] for notice in notices] == [
        "CYBORGDB_S3_BUCKET",
        "SEALDEX_WORKRES",
        "CPU_THREADS",
        "PROT",
        "kms",
        "licence",
    ]
    assert "did you mean SEALDEX_WORKERS?" in notices[1]


def test_a_wrong_value_of_a_secret_is_not_shown(tmp_path: Path) -> None:
    write(tmp_path, "cyborgdb.yaml", "service: {root_key: [secret-1, {secret-2: x}]}")
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path)
    assert "secret-" not in str(caught.value)
