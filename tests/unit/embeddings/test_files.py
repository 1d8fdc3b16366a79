import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from app.domain import EmbeddingModel
from app.embeddings import files

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
NORMALIZE = {"path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of 8 dimensions, all but the weights."""
    write(tmp_path / "modules.json", [TRANSFORMER, POOLING, NORMALIZE])
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 128})
    write(
        tmp_path / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
    )
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def test_the_configuration_tells_dimension_and_length(model: Path) -> None:
    assert files.facts("me/model", model) == EmbeddingModel("me/model", 8, 128)


@pytest.mark.parametrize(
    ("pooling", "dimension"),
    [
        (
            {
                "word_embedding_dimension": 8,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_max_tokens": True,
            },
            16,
        ),
        (
            {
                "word_embedding_dimension": 8,
                "pooling_mode_cls_token": True,
                "pooling_mode_mean_tokens": False,
            },
            8,
        ),
        ({"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True}, 8),
        ({"embedding_dimension": 8, "pooling_mode": ["mean", "max"]}, 16),
    ],
)
def test_modes_of_pooling_are_concatenated(
    model: Path, pooling: dict[str, Any], dimension: int
) -> None:
    write(model / "1_Pooling" / "config.json", pooling)
    facts = files.facts("model", model)
    assert facts is not None
    assert facts.dimension == dimension


def test_a_dense_layer_has_the_last_word(model: Path) -> None:
    write(model / "modules.json", [TRANSFORMER, POOLING, DENSE, NORMALIZE])
    write(model / "2_Dense" / "config.json", {"in_features": 8, "out_features": 5})
    assert files.facts("model", model) == EmbeddingModel("model", 5, 128)


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("modules.json", []),
        ("modules.json", {"a": 1}),
        ("modules.json", [TRANSFORMER]),
        ("modules.json", [TRANSFORMER, {"path": "", "type": "own.Module"}]),
        ("sentence_bert_config.json", {"max_seq_length": None}),
        ("sentence_bert_config.json", []),
        ("1_Pooling/config.json", {}),
        ("config_sentence_transformers.json", {"truncate_dim": 4}),
    ],
)
def test_what_is_not_plain_is_not_guessed(model: Path, file: str, value: Any) -> None:
    write(model / file, value)
    assert files.facts("model", model) is None


def test_one_file_of_weights_has_its_own_hash(model: Path) -> None:
    assert files.weights_sha256(model) == hashlib.sha256(b"weights").hexdigest()


def test_several_files_have_the_hash_of_what_sha256sum_says(model: Path) -> None:
    write(model / "modules.json", [TRANSFORMER, POOLING, DENSE])
    write(model / "2_Dense" / "config.json", {})
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"dense")
    lines = [f"{hashlib.sha256(b'dense').hexdigest()}  2_Dense/pytorch_model.bin\n"]
    lines += [f"{hashlib.sha256(b'weights').hexdigest()}  model.safetensors\n"]
    assert files.weights_sha256(model) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_weights_that_are_not_loaded_do_not_count(model: Path) -> None:
    before = files.weights_sha256(model)
    (model / "pytorch_model.bin").write_bytes(b"the same in another format")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"and in a third")
    assert files.weights_sha256(model) == before


def test_replaced_weights_have_another_hash(model: Path) -> None:
    before = files.weights_sha256(model)
    (model / "model.safetensors").write_bytes(b"others")
    assert files.weights_sha256(model) != before


def test_a_model_has_a_configuration_and_weights(model: Path, tmp_path: Path) -> None:
    assert files.is_model(model)
    (model / "model.safetensors").unlink()
    assert not files.is_model(model)
