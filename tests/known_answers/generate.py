"""Writes the JSON vectors beside this file: `python tests/known_answers/generate.py`.

A second implementation of `app/crypto/README.md`, as plain as possible: HKDF from HMAC, counter
mode block by block, dense Hadamard matrices, float64, one vector at a time. It imports nothing of
the service. The vectors are frozen: a change of a stored format adds cases under its new version
and leaves these alone.
"""

import base64
import hmac
import json
import math
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

HERE = Path(__file__).parent
PREFIX = b"sealdex/v1/"
INDEX_ID = UUID("3f0a8c5e-7d21-4b96-8e4f-d1c2b3a49587")
KEK = bytes(range(32))
DEK = bytes(range(100, 132))
NONCE = bytes(range(200, 212))
SHARDED = ("contents", "metadata", "vector", "id-seal", "encoder")
PLAIN = ("id-blind", "tokens", "sketch")


def hkdf_extract(salt: bytes, key_material: bytes) -> bytes:
    return hmac.digest(salt, key_material, "sha256")


def hkdf_expand(key: bytes, label: str, n_bytes: int) -> bytes:
    output, block = b"", b""
    for number in range(1, -(-n_bytes // 32) + 1):
        block = hmac.digest(key, block + PREFIX + label.encode() + bytes([number]), "sha256")
        output += block
    return output[:n_bytes]


def aes_block(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)  # noqa: S305


def counter_mode(key: bytes, seed: bytes, n_bytes: int) -> bytes:
    width = 16 - len(seed)
    blocks = [
        aes_block(key, seed + number.to_bytes(width, "big")) for number in range(-(-n_bytes // 16))
    ]
    return b"".join(blocks)[:n_bytes]


def hadamard(order: int) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.asarray(np.block([[matrix, matrix], [matrix, -matrix]]), np.float64)
    return matrix


def bits_of(data: bytes) -> list[int]:
    return [byte >> 7 - place & 1 for byte in data for place in range(8)]


def pack(bits: list[int]) -> bytes:
    return bytes(
        sum(bits[start + place] << 7 - place for place in range(8))
        for start in range(0, len(bits), 8)
    )


def keys_case() -> dict[str, Any]:
    pseudorandom_key = hkdf_extract(INDEX_ID.bytes, DEK)
    wrapped = b"\x01" + NONCE + AESGCM(KEK).encrypt(NONCE, DEK, PREFIX + b"dek" + INDEX_ID.bytes)
    aad = b"sealdex/v2/dek" + INDEX_ID.bytes
    wrapped_with_header = b"\x02" + NONCE + AESGCM(KEK).encrypt(NONCE, DEK, aad)
    return {
        "index_id": str(INDEX_ID),
        "kek": KEK.hex(),
        "dek": DEK.hex(),
        "wrap_aad": (PREFIX + b"dek" + INDEX_ID.bytes).hex(),
        "wrapped": wrapped.hex(),
        "wrapped_with_header": wrapped_with_header.hex(),
        "pseudorandom_key": pseudorandom_key.hex(),
        "keys": {label: hkdf_expand(pseudorandom_key, label, 32).hex() for label in PLAIN},
        "first_and_last_sub_key": {
            label: [material[:32].hex(), material[-32:].hex()]
            for label in SHARDED
            for material in [hkdf_expand(pseudorandom_key, label, 64 * 32)]
        },
    }


def sealed_case(label: str, item_key: bytes, plaintext: bytes) -> dict[str, Any]:
    material = hkdf_expand(hkdf_extract(INDEX_ID.bytes, DEK), label, 64 * 32)
    shard = item_key[0] % 64
    sub_key = material[32 * shard : 32 * shard + 32]
    aad = INDEX_ID.bytes + item_key + label.encode()
    return {
        "label": label,
        "item_key": item_key.hex(),
        "shard": shard,
        "sub_key": sub_key.hex(),
        "aad": aad.hex(),
        "plaintext": plaintext.hex(),
        "sealed": (b"\x01" + NONCE + AESGCM(sub_key).encrypt(NONCE, plaintext, aad)).hex(),
    }


FIELD = 2**255 - 19
BASE_POINT = (9).to_bytes(32, "little")


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5, letter by letter."""
    k = int.from_bytes(scalar, "little") & ~7 & ~(1 << 255) | 1 << 254
    u = int.from_bytes(point, "little") & (1 << 255) - 1
    x_2, z_2, x_3, z_3, swap = 1, 0, u, 1, 0
    for t in reversed(range(255)):
        k_t = k >> t & 1
        if swap ^ k_t:
            x_2, x_3, z_2, z_3 = x_3, x_2, z_3, z_2
        swap = k_t
        a, b, c, d = x_2 + z_2, x_2 - z_2, x_3 + z_3, x_3 - z_3
        aa, bb, da, cb = a * a, b * b, d * a, c * b
        e = aa - bb
        x_3, z_3 = pow(da + cb, 2, FIELD), u * pow(da - cb, 2, FIELD) % FIELD
        x_2, z_2 = aa * bb % FIELD, e * (aa + 121665 * e) % FIELD
    if swap:
        x_2, z_2 = x_3, z_3
    return (x_2 * pow(z_2, FIELD - 2, FIELD) % FIELD).to_bytes(32, "little")


def session_case(label: str, item_key: bytes, plaintext: bytes) -> dict[str, str]:
    private = hkdf_expand(hkdf_extract(INDEX_ID.bytes, DEK), "writer", 32)
    public = x25519(private, BASE_POINT)
    ephemeral = bytes(range(50, 82))
    name = x25519(ephemeral, BASE_POINT)
    shared = x25519(ephemeral, public)
    session_key = hkdf_extract(INDEX_ID.bytes, shared + name + public)
    key = hkdf_expand(session_key, label, 32)
    aad = INDEX_ID.bytes + item_key + label.encode()
    return {
        "label": label,
        "private_key": private.hex(),
        "public_key": public.hex(),
        "session": name.hex(),
        "shared": shared.hex(),
        "session_key": session_key.hex(),
        "key": key.hex(),
        "item_key": item_key.hex(),
        "plaintext": plaintext.hex(),
        "sealed": (b"\x02" + name + NONCE + AESGCM(key).encrypt(NONCE, plaintext, aad)).hex(),
    }


def write_key() -> bytes:
    pseudorandom_key = hkdf_extract(INDEX_ID.bytes, DEK)
    public = x25519(hkdf_expand(pseudorandom_key, "writer", 32), BASE_POINT)
    plain = b"".join(hkdf_expand(pseudorandom_key, label, 32) for label in PLAIN)
    return public + plain + hkdf_expand(pseudorandom_key, "encoder", 64 * 32)


def user_case() -> dict[str, str]:
    root_key, user_id, user_key = "an example root key", bytes(range(16)), bytes(range(16, 48))
    tag_key = hkdf_expand(hkdf_extract(b"", root_key.encode()), "user-token", 32)
    tag = hmac.digest(tag_key, b"1" + user_id + user_key, "sha256")[:8]
    keys = {"read": hkdf_extract(INDEX_ID.bytes, DEK), "write": write_key()}
    wrapped = {
        permission: b"\x01"
        + NONCE
        + AESGCM(user_key).encrypt(
            NONCE, key, PREFIX + b"user" + INDEX_ID.bytes + user_id + permission.encode()
        )
        for permission, key in keys.items()
    }
    with_header = {
        permission: b"\x02"
        + NONCE
        + AESGCM(user_key).encrypt(
            NONCE, key, b"sealdex/v2/user" + INDEX_ID.bytes + user_id + permission.encode()
        )
        for permission, key in keys.items()
    }
    return {
        "root_key": root_key,
        "user_id": user_id.hex(),
        "user_key": user_key.hex(),
        "tag_key": tag_key.hex(),
        "token": "cdbk_1_"
        + base64.urlsafe_b64encode(user_id + user_key + tag).decode().rstrip("="),
        "read_key": keys["read"].hex(),
        "write_key": keys["write"].hex(),
        "wrapped_read_key": wrapped["read"].hex(),
        "wrapped_write_key": wrapped["write"].hex(),
        "wrapped_with_header_read_key": with_header["read"].hex(),
        "wrapped_with_header_write_key": with_header["write"].hex(),
    }


def tokens_cases() -> list[dict[str, str]]:
    blind_key = hkdf_expand(hkdf_extract(INDEX_ID.bytes, DEK), "id-blind", 32)
    return [
        {"id": text, "item_key": hmac.digest(blind_key, text.encode(), "sha256")[:16].hex()}
        for text in ("", "a", "item_1", "naïve · 日本語", "x" * 1000)
    ]


def terms_cases() -> list[dict[str, Any]]:
    """Terms of metadata as path and value; null stands for "too many"."""
    token_key = hkdf_expand(hkdf_extract(INDEX_ID.bytes, DEK), "tokens", 32)
    cases = []
    for path, value, kind, text in (
        ("name", "Bob", "s", "Bob"),
        ("name", "", "s", ""),
        ("naïve.日本語", "ü", "s", "ü"),
        ("", "x", "s", "x"),
        ("age", 30, "n", "1e"),
        ("age", 30.0, "n", "1e"),
        ("age", -1, "n", "-1"),
        ("age", 0.1, "n", "0.1"),
        ("age", 2**53 + 1, "n", "20000000000001"),
        ("age", "30", "s", "30"),
        ("tags", None, "f", ""),
        ("", None, "f", ""),
    ):
        message = (
            kind.encode() + len(path.encode()).to_bytes(4, "big") + path.encode() + text.encode()
        )
        token = int.from_bytes(hmac.digest(token_key, message, "sha256")[:8], "big", signed=True)
        cases.append({"path": path, "value": value, "message": message.hex(), "token": token})
    return cases


def example_vector(dimension: int, step: int) -> list[float]:
    """Exact in float32, and on every platform."""
    return [((number * step) % 1009 - 504) / 512 for number in range(1, dimension + 1)]


def lift(metric: str, vector: list[float], mean: list[float], scale: float) -> NDArray[np.float64]:
    x = np.array(vector)
    if metric == "cosine":
        lifted = x / math.sqrt(float(np.sum(x * x))) - np.array(mean)
    else:
        lifted = np.append((x - np.array(mean)) / scale, 1.0)
    unit: NDArray[np.float64] = lifted / math.sqrt(float(np.sum(lifted * lifted)))
    return unit


def coins_of_vector(
    sketch_key: bytes, item_key: bytes, vector: list[float], signs: list[int]
) -> dict[str, Any]:
    """The coins of format 1: one a bit, by item key and vector."""
    seed_key = hkdf_expand(sketch_key, "sketch/flip-seed", 32)
    coin_key = hkdf_expand(sketch_key, "sketch/flip-coins", 32)
    seed = hmac.digest(seed_key, item_key + np.array(vector, "<f4").tobytes(), "sha256")[:12]
    coins = words_of(counter_mode(coin_key, seed, 2 * len(signs)))
    return {
        "seed_key": seed_key.hex(),
        "coin_key": coin_key.hex(),
        "seed": seed.hex(),
        "coins_prefix": coins[:16],
        "chosen": coins,
    }


def coins_of_bits(sketch_key: bytes, item_key: bytes, signs: list[int]) -> dict[str, Any]:
    """The coins of format 2: two a bit, for its value 0 and for its value 1, by item key alone."""
    seed_key = hkdf_expand(sketch_key, "sketch/bit-seed", 32)
    coin_key = hkdf_expand(sketch_key, "sketch/bit-coins", 32)
    seed = aes_block(seed_key, item_key)[:12]
    coins = words_of(counter_mode(coin_key, seed, 4 * len(signs)))
    return {
        "seed_key": seed_key.hex(),
        "coin_key": coin_key.hex(),
        "seed": seed.hex(),
        "coins_prefix": coins[:16],
        "coins_last": coins[-1],
        "chosen": [coins[sign * len(signs) + place] for place, sign in enumerate(signs)],
    }


def words_of(data: bytes) -> list[int]:
    return [int.from_bytes(data[start : start + 2], "little") for start in range(0, len(data), 2)]


class Rotated(NamedTuple):
    """A vector that was rotated, with what turned it."""

    numbers: list[float]
    signs: list[list[int]]
    permutations: list[list[int]]
    size: int
    n_blocks: int


def rotate(rotation_key: bytes, lifted: NDArray[np.float64], bits: int) -> Rotated:
    size = max(256, 2 ** math.ceil(math.log2(len(lifted))))
    n_blocks = -(-bits // size)
    stream = counter_mode(rotation_key, b"", n_blocks * (3 * size // 8 + 2 * 8 * size))
    rotated: list[float] = []
    all_signs: list[list[int]] = []
    all_permutations: list[list[int]] = []
    for block in range(n_blocks):
        part = stream[block * (3 * size // 8 + 16 * size) :]
        flips = bits_of(part[: 3 * size // 8])
        words = [
            int.from_bytes(part[start : start + 8], "little")
            for start in range(3 * size // 8, len(part), 8)
        ]
        x = np.zeros(size)
        x[: len(lifted)] = lifted
        for number in range(3):
            if number:
                own = words[(number - 1) * size : number * size]
                permutation = sorted(range(size), key=own.__getitem__)
                x = np.array([x[place] for place in permutation])
                all_permutations.append(permutation)
            signs = [1 - 2 * flip for flip in flips[number * size : (number + 1) * size]]
            all_signs.append(signs)
            x = hadamard(size) @ (np.array(signs) * x) / math.sqrt(size)
        rotated += [float(value) for value in x]
    return Rotated(rotated, all_signs, all_permutations, size, n_blocks)


def sketch_case(
    coin_format: int,
    metric: str,
    dimension: int,
    bits: int,
    mean: list[float],
    scale: float,
    step: int = 7919,
) -> dict[str, Any]:
    """Numbers of `rotated` are those of a true rotation.

    A case has none near zero, where platforms may differ.
    """
    sketch_key = hkdf_expand(hkdf_extract(INDEX_ID.bytes, DEK), "sketch", 32)
    rotation_key = hkdf_expand(sketch_key, "sketch/rotation", 32)
    vector = example_vector(dimension, step)
    lifted = lift(metric, vector, mean, scale)
    turned = rotate(rotation_key, lifted, bits)
    rotated, all_signs, all_permutations = turned.numbers, turned.signs, turned.permutations
    size, n_blocks = turned.size, turned.n_blocks
    smallest = min(abs(value) for value in rotated[:bits])
    if smallest < 1e-5:
        return sketch_case(coin_format, metric, dimension, bits, mean, scale, step + 1)
    signs_of = [int(value >= 0) for value in rotated[:bits]]
    item_key = bytes(range(16))
    noise = 0.1
    coins = (
        coins_of_vector(sketch_key, item_key, vector, signs_of)
        if coin_format == 1
        else coins_of_bits(sketch_key, item_key, signs_of)
    )
    flips = [int(coin < round(noise * 65536)) for coin in coins.pop("chosen")]
    return {
        "format": coin_format,
        "metric": metric,
        "dimension": dimension,
        "bits": bits,
        "noise": noise,
        "mean": mean,
        "scale": scale,
        "vector": vector,
        "sketch_key": sketch_key.hex(),
        "rotation_key": rotation_key.hex(),
        "size": size,
        "n_blocks": n_blocks,
        "signs_prefix": [signs[:16] for signs in all_signs],
        "permutations_prefix": [permutation[:8] for permutation in all_permutations],
        "lifted_prefix": [float(value) for value in lifted[:8]],
        "rotated_prefix": rotated[:16],
        "rotated_last": rotated[bits - 1],
        "query_sketch": pack(signs_of).hex(),
        "item_key": item_key.hex(),
        **coins,
        "item_sketch": pack(
            [sign ^ flip for sign, flip in zip(signs_of, flips, strict=True)]
        ).hex(),
    }


def parameters_case(data_format: int) -> dict[str, Any]:
    mean, scale, version = [0.5, -0.25, 3.0], 1.75, 7
    data = (
        bytes([data_format])
        + version.to_bytes(4, "little")
        + len(mean).to_bytes(4, "little")
        + np.float64(scale).astype("<f8").tobytes()
        + np.array(mean, "<f4").tobytes()
    )
    return {
        "format": data_format,
        "version": version,
        "mean": mean,
        "scale": scale,
        "bytes": data.hex(),
    }


def padded(data: bytes) -> bytes:
    """Pad to the next of the lengths 64 · 1, 1.25, 1.5, 1.75, 2, 2.5 …"""
    length = step = 64
    while length < len(data):
        step = 2 ** int(math.log2(length))
        length += step // 4
    return data + bytes(length - len(data))


CHUNK_NAME = bytes(range(60, 76))
CONTEXT = (7).to_bytes(4, "little") + (2).to_bytes(4, "little")


def chunk_case(label: str, kind: int, data: bytes, *, in_session: bool = False) -> dict[str, Any]:
    """Generation 7, encoder 2."""
    name = bytes(16) if kind == 2 else CHUNK_NAME
    context = bytes([kind, 0, 0, 0]) + CONTEXT
    if kind == 2:
        context += b"".join(number.to_bytes(8, "little") for number in (12, 5, 4))
    plaintext, aad = padded(data), INDEX_ID.bytes + name + label.encode() + context
    if in_session:
        case = session_case(label, name, b"")
        key, head = bytes.fromhex(case["key"]), b"\x02" + bytes.fromhex(case["session"])
    else:
        case = sealed_case(label, name, b"")
        key, head = bytes.fromhex(case["sub_key"]), b"\x01"
    return {
        "label": label,
        "kind": kind,
        "in_session": in_session,
        "generation": 7,
        "encoder_version": 2,
        "name": name.hex(),
        "aad": aad.hex(),
        "plaintext": plaintext.hex(),
        "sealed": (head + NONCE + AESGCM(key).encrypt(NONCE, plaintext, aad)).hex(),
    }


def little(number: int, n_bytes: int = 4) -> bytes:
    return number.to_bytes(n_bytes, "little", signed=number < 0)


def entries_data(code_kind: int, codes: list[bytes]) -> bytes:
    keys = [bytes([number]) * 16 for number in range(len(codes))]
    records = [
        key + little(-5 - number, 8) + np.array([0.5 + number, -2.0], "<f4").tobytes()
        for number, key in enumerate(keys)
    ]
    header = bytes([1, code_kind, 0, 0]) + little(len(codes)) + little(len(codes[0])) + bytes(4)
    lists = [little(number - 1) for number in range(len(codes))]
    return header + b"".join(codes) + b"".join(records) + b"".join(lists)


def chunk_cases() -> list[dict[str, Any]]:
    names = [bytes([number]) * 16 for number in range(1, 6)]
    sketches = entries_data(0, [bytes([number]) * 64 for number in (1, 2, 3)])
    vectors = [[1.0, -2.5], [0.15625, 3.0]]
    floats = entries_data(1, [np.array(row, "<f4").tobytes() for row in vectors])
    halves = entries_data(2, [np.array(row, "<f2").tobytes() for row in vectors])
    root = (
        bytes([1, 0, 0, 0])
        + b"".join(map(little, (65, 3, 64, 64)))
        + b"".join(names[:2])
        + b"".join(names[2:4])
    )
    directory = (
        bytes([1, 0, 0, 0])
        + b"".join(map(little, (64, 3, 1, 0, 2)))
        + b"".join(name + little(number) for number, name in enumerate(names[:3], 10))
    )
    numbers = np.array([[0.5, 1.0, -2.0], [4.0, 0.0, 0.25]], "<f4").tobytes()
    centroids = bytes([1, 0, 0, 0]) + b"".join(map(little, (64, 2, 3))) + numbers
    return [
        chunk_case("fresh-chunk", 1, sketches),
        chunk_case("fresh-chunk", 1, floats, in_session=True),
        chunk_case("chunk", 1, sketches),
        chunk_case("chunk", 1, halves),
        chunk_case("layout", 2, root),
        chunk_case("layout", 3, directory),
        chunk_case("layout", 4, centroids),
    ]


def listed_case(
    metric: str, dimension: int, bits: int, mean: list[float], scale: float, step: int = 7919
) -> dict[str, Any]:
    """A vector in a list, and without one; a case has no rotated number near zero."""
    sketch_key = hkdf_expand(hkdf_extract(INDEX_ID.bytes, DEK), "sketch", 32)
    key = hkdf_expand(sketch_key, "sketch/lists", 32)
    vector = example_vector(dimension, step)
    x = np.array(vector)
    point = x / math.sqrt(float(x @ x)) if metric == "cosine" else (x - np.array(mean)) / scale
    origin = np.array(mean) if metric == "cosine" else np.zeros(dimension)
    centroid = np.array(example_vector(dimension, step + 30)) / 4
    bases = {"listed": centroid, "alone": origin}
    made = {}
    for name, base in bases.items():
        root = math.sqrt(max(256, 2 ** math.ceil(math.log2(dimension))))
        numbers = [root * number for number in rotate(key, point - base, bits).numbers[:bits]]
        if min(map(abs, numbers)) < 1e-4:
            return listed_case(metric, dimension, bits, mean, scale, step + 1)
        signs = [1 if number >= 0 else -1 for number in numbers]
        of_base = [root * number for number in rotate(key, base, bits).numbers[:bits]]
        made[name] = {
            "bits": pack([int(sign > 0) for sign in signs]).hex(),
            "length": math.sqrt(float((point - base) @ (point - base))),
            "offset": sum(sign * number for sign, number in zip(signs, of_base, strict=True)),
        }
    return {
        "metric": metric,
        "bits": bits,
        "mean": mean,
        "scale": scale,
        "vector": vector,
        "sketch_key": sketch_key.hex(),
        "rotation_key": key.hex(),
        "centroid": [float(number) for number in centroid],
        "point": [float(number) for number in point],
        **made,
    }


def write(name: str, value: object) -> None:
    (HERE / name).write_text(
        json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def main() -> None:
    item_key = bytes.fromhex(tokens_cases()[2]["item_key"])
    row = np.array([1.0, -2.5, 0.15625], "<f4")
    write("keys.json", keys_case())
    write(
        "aead.json",
        [
            sealed_case("contents", item_key, b"The quick brown fox"),
            sealed_case("metadata", item_key, b"{}"),
            sealed_case("vector", bytes([0xFF]) * 16, row.tobytes()),
            sealed_case("id-seal", item_key, b"item_1"),
            sealed_case("encoder", bytes(16), b""),
        ],
    )
    write(
        "sessions.json",
        [
            session_case("contents", item_key, b"The quick brown fox"),
            session_case("vector", bytes([0xFF]) * 16, row.tobytes()),
            session_case("id-seal", item_key, b"item_1"),
        ],
    )
    write("users.json", user_case())
    write("tokens.json", tokens_cases())
    write("terms.json", terms_cases())
    write("chunks.json", chunk_cases())
    write(
        "lists.json",
        [
            listed_case("cosine", 6, 512, [0.125, 0.0, -0.25, 0.0, 0.0625, 0.5], 1.0),
            listed_case("euclidean", 256, 576, [0.25] * 256, 12.5),
            listed_case("squared_euclidean", 3, 72, [0.0] * 3, 1.0),
        ],
    )
    write("encoder.json", [parameters_case(data_format) for data_format in (1, 2)])
    write(
        "sketch.json",
        [
            sketch_case(coin_format, *case)
            for coin_format in (1, 2)
            for case in (
                ("cosine", 6, 512, [0.125, 0.0, -0.25, 0.0, 0.0625, 0.5], 1.0),
                ("euclidean", 256, 576, [0.25] * 256, 12.5),
                ("squared_euclidean", 3, 512, [0.0] * 3, 1.0),
            )
        ],
    )


if __name__ == "__main__":
    main()
