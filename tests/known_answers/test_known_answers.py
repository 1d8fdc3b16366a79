"""The frozen vectors, step by step. `generate.py` is the second implementation that wrote them."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from app.crypto import aead, hkdf, keys, sessions, tokens, user_keys
from app.domain import Matrix, Metric, Permission, UserToken
from app.engine.lists import chunk_format, layout_format
from app.engine.lists.entries import fields
from app.engine.lists.layout_format import Root
from app.engine.lists.sealing import Kind, Sealing
from app.engine.lists.sketching import NO_LIST, Sketcher
from app.engine.lists.space import Space
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.flips import BitFlips, VectorFlips, coins
from app.engine.sketches.parameters import EncoderParameters
from app.engine.sketches.rotation import N_ROUNDS, Rotation
from app.filters import terms
from app.store.chunks import ChunkRow, LayoutRow


def read(name: str) -> Any:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


KEYS = read("keys.json")
INDEX_ID = UUID(KEYS["index_id"])
SEALERS = {
    "contents": "contents",
    "metadata": "metadata",
    "vector": "vectors",
    "id-seal": "ids",
    "encoder": "parameters",
}
SKETCHES = read("sketch.json")


def name_of(case: dict[str, Any]) -> str:
    return f"{case['metric']}-{case['format']}"


@pytest.fixture
def index_keys() -> keys.IndexKeys:
    return keys.IndexKeys.derive(bytes.fromhex(KEYS["dek"]), INDEX_ID)


@pytest.mark.parametrize("version", ["wrapped", "wrapped_with_header"])
def test_wrapped_dek_opens(version: str) -> None:
    wrapped = bytes.fromhex(KEYS[version])
    assert keys.unwrap_dek(bytes.fromhex(KEYS["kek"]), wrapped, INDEX_ID).hex() == KEYS["dek"]
    assert keys.demands_header(wrapped) == (version == "wrapped_with_header")


def test_pseudorandom_key_is_as_frozen() -> None:
    assert (
        hkdf.extract(INDEX_ID.bytes, bytes.fromhex(KEYS["dek"])).hex() == KEYS["pseudorandom_key"]
    )


def test_derived_keys_are_as_frozen(index_keys: keys.IndexKeys) -> None:
    derived = {
        "id-blind": index_keys.blind_key.hex(),
        "tokens": index_keys.token_key.hex(),
        "sketch": index_keys.sketch_key.hex(),
    }
    assert derived == KEYS["keys"]


@pytest.mark.parametrize("label", KEYS["first_and_last_sub_key"])
def test_sub_keys_are_as_frozen(label: str) -> None:
    material = hkdf.expand(bytes.fromhex(KEYS["pseudorandom_key"]), label, aead.KEY_MATERIAL_BYTES)
    assert [material[:32].hex(), material[-32:].hex()] == KEYS["first_and_last_sub_key"][label]


@pytest.mark.parametrize("case", read("aead.json"), ids=lambda case: case["label"])
def test_sealed_value_opens(index_keys: keys.IndexKeys, case: dict[str, str]) -> None:
    sealer: aead.Sealer = getattr(index_keys, SEALERS[case["label"]])
    assert (
        sealer.open(bytes.fromhex(case["item_key"]), bytes.fromhex(case["sealed"])).hex()
        == case["plaintext"]
    )


def test_sealed_vector_opens_as_a_row(index_keys: keys.IndexKeys) -> None:
    case = next(case for case in read("aead.json") if case["label"] == "vector")
    rows = index_keys.vectors.open_rows(
        [bytes.fromhex(case["item_key"])], [bytes.fromhex(case["sealed"])], np.dtype(np.float32), 3
    )
    assert rows.tolist() == [[1.0, -2.5, 0.15625]]


@pytest.mark.parametrize("case", read("sessions.json"), ids=lambda case: case["label"])
def test_sessions_are_as_frozen(index_keys: keys.IndexKeys, case: dict[str, str]) -> None:
    private, name = bytes.fromhex(case["private_key"]), bytes.fromhex(case["session"])
    assert index_keys._sessions.private_key == private
    assert sessions.public_bytes(private).hex() == case["public_key"]
    session = sessions.enter(private, name, INDEX_ID)
    assert (session._key.hex(), session.key(case["label"]).hex()) == (
        case["session_key"],
        case["key"],
    )


@pytest.mark.parametrize("case", read("sessions.json"), ids=lambda case: case["label"])
def test_what_a_writer_sealed_opens(index_keys: keys.IndexKeys, case: dict[str, str]) -> None:
    sealer: aead.Sealer = getattr(index_keys, SEALERS[case["label"]])
    assert (
        sealer.open(bytes.fromhex(case["item_key"]), bytes.fromhex(case["sealed"])).hex()
        == case["plaintext"]
    )


def test_user_tokens_are_as_frozen() -> None:
    case = read("users.json")
    token = UserToken(bytes.fromhex(case["user_id"]), bytes.fromhex(case["user_key"]))
    assert user_keys.format_token(token, case["root_key"]) == case["token"]
    assert user_keys.parse_token(case["token"], case["root_key"]) == token


@pytest.mark.parametrize("version", ["wrapped", "wrapped_with_header"])
@pytest.mark.parametrize("permission", Permission)
def test_keys_wrapped_for_users_unwrap(
    index_keys: keys.IndexKeys, permission: Permission, version: str
) -> None:
    case = read("users.json")
    token = UserToken(bytes.fromhex(case["user_id"]), bytes.fromhex(case["user_key"]))
    wrapped = bytes.fromhex(case[f"{version}_{permission}_key"])
    assert user_keys.demands_header(wrapped) == (version == "wrapped_with_header")
    assert user_keys.unwrap(token, wrapped, INDEX_ID, permission).hex() == case[f"{permission}_key"]
    given = {Permission.READ: index_keys.read_key(), Permission.WRITE: index_keys.write_key()}
    assert given[permission].hex() == case[f"{permission}_key"]


@pytest.mark.parametrize("case", read("tokens.json"), ids=lambda case: case["id"][:10])
def test_item_key_is_as_frozen(index_keys: keys.IndexKeys, case: dict[str, str]) -> None:
    assert tokens.item_key(index_keys.blind_key, case["id"]).hex() == case["item_key"]


@pytest.mark.parametrize(
    "case", read("terms.json"), ids=lambda case: f"{case['path']}={case['value']}"
)
def test_token_of_a_term_is_as_frozen(index_keys: keys.IndexKeys, case: dict[str, Any]) -> None:
    message = terms.message((case["path"], case["value"]))
    assert message.hex() == case["message"]
    token = tokens.token(index_keys.token_key, message)
    assert int.from_bytes(token, "big", signed=True) == case["token"]


@pytest.mark.parametrize("case", read("encoder.json"), ids=lambda case: f"format-{case['format']}")
def test_encoder_parameters_are_as_frozen(case: dict[str, Any]) -> None:
    parameters = EncoderParameters(
        case["version"], np.array(case["mean"], np.float32), case["scale"], case["format"]
    )
    assert parameters.to_bytes().hex() == case["bytes"]
    assert (
        EncoderParameters.from_bytes(bytes.fromhex(case["bytes"])).to_bytes().hex() == case["bytes"]
    )


def encoder_of(case: dict[str, Any]) -> Encoder:
    mean = np.array(case["mean"], np.float32)
    parameters = EncoderParameters(1, mean, case["scale"], case["format"])
    return Encoder(
        bytes.fromhex(case["sketch_key"]),
        case["dimension"],
        Metric(case["metric"]),
        case["bits"],
        case["noise"],
        parameters,
    )


def vectors_of(case: dict[str, Any]) -> Matrix:
    return np.array([case["vector"]], np.float32)


@pytest.mark.parametrize("case", SKETCHES, ids=name_of)
def test_rotation_is_as_frozen(case: dict[str, Any]) -> None:
    lifted_dimension = case["dimension"] + (case["metric"] != "cosine")
    key = hkdf.expand(bytes.fromhex(case["sketch_key"]), "sketch/rotation")
    rotation = Rotation.derive(key, lifted_dimension, case["bits"])
    n_blocks, size = case["n_blocks"], case["size"]
    assert key.hex() == case["rotation_key"]
    assert rotation.size == size
    assert rotation.signs.swapaxes(0, 1).reshape(-1, size)[:, :16].tolist() == case["signs_prefix"]
    permutations = (
        rotation.permutations.reshape(N_ROUNDS - 1, n_blocks, size)
        - size * np.arange(n_blocks)[:, None]
    )
    assert (
        permutations.swapaxes(0, 1).reshape(-1, size)[:, :8].tolist() == case["permutations_prefix"]
    )


@pytest.mark.parametrize("case", SKETCHES, ids=name_of)
def test_rotated_numbers_are_as_frozen(case: dict[str, Any]) -> None:
    encoder = encoder_of(case)
    lifted = encoder._lift(vectors_of(case))
    assert lifted[0, :8] == pytest.approx(case["lifted_prefix"], abs=1e-6)
    rotation = encoder._rotation
    columns = np.zeros((rotation.size, 1), np.float32)
    columns[: lifted.shape[1]] = lifted.T
    rotated = rotation.rotate(columns)[:, 0] / rotation.size**1.5
    assert rotated[:16] == pytest.approx(case["rotated_prefix"], abs=1e-6)
    assert rotated[case["bits"] - 1] == pytest.approx(case["rotated_last"], abs=1e-6)


@pytest.mark.parametrize("case", [case for case in SKETCHES if case["format"] == 1], ids=name_of)
def test_coins_of_vectors_are_as_frozen(case: dict[str, Any]) -> None:
    flips = VectorFlips(bytes.fromhex(case["sketch_key"]), case["bits"], case["noise"])
    seeds = flips.seeds(vectors_of(case), [bytes.fromhex(case["item_key"])])
    assert seeds.tobytes().hex() == case["seed"]
    tossed = coins(bytes.fromhex(case["coin_key"]), seeds, case["bits"])
    assert tossed[0, :16].tolist() == case["coins_prefix"]


@pytest.mark.parametrize("case", [case for case in SKETCHES if case["format"] == 2], ids=name_of)
def test_coins_of_bits_are_as_frozen(case: dict[str, Any]) -> None:
    flips = BitFlips(bytes.fromhex(case["sketch_key"]), case["bits"], case["noise"])
    seeds = flips.seeds([bytes.fromhex(case["item_key"])])
    assert seeds.tobytes().hex() == case["seed"]
    tossed = coins(bytes.fromhex(case["coin_key"]), seeds, 2 * case["bits"])
    assert (tossed[0, :16].tolist(), tossed[0, -1]) == (case["coins_prefix"], case["coins_last"])


@pytest.mark.parametrize("case", SKETCHES, ids=name_of)
def test_sketches_are_as_frozen(case: dict[str, Any]) -> None:
    encoder, vectors = encoder_of(case), vectors_of(case)
    assert encoder.encode_queries(vectors).tobytes().hex() == case["query_sketch"]
    assert (
        encoder.encode_items(vectors, [bytes.fromhex(case["item_key"])]).tobytes().hex()
        == case["item_sketch"]
    )


CHUNKS = read("chunks.json")


def chunk_id(case: dict[str, Any]) -> str:
    return f"{case['label']}, kind {case['kind']}{', in a session' if case['in_session'] else ''}"


def opened_chunk(index_keys: keys.IndexKeys, case: dict[str, Any]) -> Any:
    """What the service reads in a chunk."""
    sealing = Sealing(index_keys, case["generation"], case["encoder_version"])
    name, sealed = bytes.fromhex(case["name"]), bytes.fromhex(case["sealed"])
    row = ChunkRow(name, case["generation"], case["encoder_version"], sealed)
    kind = Kind(case["kind"])
    if kind is Kind.ENTRIES:
        is_fresh = case["label"] == "fresh-chunk"
        return (sealing.open_fresh if is_fresh else sealing.open_listed)(row)
    if kind is Kind.ROOT:
        return sealing.open_root(LayoutRow(12, 7, 2, 5, 4, (), sealed))
    data = sealing.open_page(kind, row)
    is_directory = kind is Kind.DIRECTORY
    read_page: Any = (
        layout_format.directory_from_bytes if is_directory else layout_format.centroids_from_bytes
    )
    return read_page(data, 64)


@pytest.mark.parametrize("case", CHUNKS, ids=chunk_id)
def test_chunks_open(index_keys: keys.IndexKeys, case: dict[str, Any]) -> None:
    names = [bytes([number]) * 16 for number in range(1, 6)]
    found = opened_chunk(index_keys, case)
    if case["kind"] == Kind.ROOT:
        assert found == Root(65, 3, names[:2], names[2:4])
        assert found.to_bytes().hex() == case["plaintext"]
    elif case["kind"] == Kind.DIRECTORY:
        assert found == [[(names[0], 10)], [], [(names[1], 11), (names[2], 12)]]
        assert layout_format.directory_page(64, found).hex() == case["plaintext"]
    elif case["kind"] == Kind.CENTROIDS:
        assert found.tolist() == [[0.5, 1.0, -2.0], [4.0, 0.0, 0.25]]
    else:
        assert chunk_format.to_bytes(found).hex() == case["plaintext"]


@pytest.mark.parametrize("case", [case for case in CHUNKS if case["kind"] == 1], ids=chunk_id)
def test_entries_are_as_frozen(index_keys: keys.IndexKeys, case: dict[str, Any]) -> None:
    found = opened_chunk(index_keys, case)
    records, n = fields(found.records), len(found)
    assert records["item_key"].tolist() == [bytes([number]) * 16 for number in range(n)]
    assert records["tag"].tolist() == [-5 - number for number in range(n)]
    assert records["length"].tolist() == [0.5 + number for number in range(n)]
    assert records["offset"].tolist() == [-2.0] * n
    assert found.lists.tolist() == [number - 1 for number in range(n)]
    if found.is_exact:
        assert found.codes.tolist() == [[1.0, -2.5], [0.15625, 3.0]]
    else:
        assert [row.tobytes() for row in found.codes] == [bytes([byte]) * 64 for byte in (1, 2, 3)]


@pytest.mark.parametrize("case", read("lists.json"), ids=lambda case: case["metric"])
def test_sketches_of_lists_are_as_frozen(case: dict[str, Any]) -> None:
    vector = np.array([case["vector"]], np.float32)
    space = Space(Metric(case["metric"]), np.array(case["mean"], np.float32), case["scale"])
    (point,) = points = space.points(vector)
    assert point == pytest.approx(case["point"], abs=1e-6)
    bases = np.array([case["centroid"], space.origin], np.float32)
    sketcher = Sketcher(bytes.fromhex(case["sketch_key"]), bases, case["bits"])
    for name, number in (("listed", 0), ("alone", NO_LIST)):
        made = sketcher.sketch(points, np.array([number], np.int32), np.zeros(1, np.bool_))
        n_bytes = case["bits"] // 8
        assert made.words.tobytes()[:n_bytes].hex() == case[name]["bits"]
        assert not any(made.words.tobytes()[n_bytes:])
        assert made.lengths[0] == pytest.approx(case[name]["length"], rel=1e-5)
        assert made.offsets[0] == pytest.approx(case[name]["offset"], rel=1e-4, abs=1e-3)
