from pathlib import Path

import pytest

from app import errors
from app.embeddings import catalogue


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    for name in ("all-MiniLM-L6-v2", "bge-small-en-v1.5", "me--Own", "you--own", "lower", "LOWER"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no directory").write_text("")
    (tmp_path / ".hidden").symlink_to(tmp_path / "lower")
    return tmp_path


def test_directories_are_models_with_full_names(models_dir: Path) -> None:
    assert [model.name for model in catalogue.models_in(models_dir)] == [
        "BAAI/bge-small-en-v1.5",
        "me/Own",
        "sentence-transformers/LOWER",
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers/lower",
        "you/own",
    ]


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("ALL-MINILM-L6-V2", "all-MiniLM-L6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("BGE-small-en-v1.5", "bge-small-en-v1.5"),
        ("baai/bge-small-en-v1.5", "bge-small-en-v1.5"),
        ("me/Own", "me--Own"),
        ("me--own", "me--Own"),
        ("you/OWN", "you--own"),
        ("lower", "lower"),
        ("LOWER", "LOWER"),
    ],
)
def test_a_name_finds_its_model(models_dir: Path, name: str, directory: str) -> None:
    found = catalogue.choose(catalogue.models_in(models_dir), name)
    assert found is not None
    assert found.directory == models_dir / directory


@pytest.mark.parametrize(
    "name", ["", "MiniLM", "me/all-MiniLM-L6-v2", "../lower", "./lower", "lower/", "empty"]
)
def test_other_names_find_none(models_dir: Path, name: str) -> None:
    assert catalogue.choose(catalogue.models_in(models_dir), name) is None


@pytest.mark.parametrize("name", ["own", "Lower"])
def test_a_name_of_several_is_refused(models_dir: Path, name: str) -> None:
    with pytest.raises(errors.InvalidInput, match="ambiguous"):
        catalogue.choose(catalogue.models_in(models_dir), name)
