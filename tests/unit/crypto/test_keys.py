import gc
import os
import uuid
import weakref

import pytest

from app.crypto import keys
from app.errors import DataCorrupted, InvalidInput, KeyRejected

INDEX_ID = uuid.UUID(int=7)
KEK = bytes(range(32))


@pytest.mark.parametrize("text", ["ab" * 32, "AB" * 32, "aB" * 32])
def test_index_key_is_hex_of_either_case(text: str) -> None:
    assert keys.parse_index_key(text) == b"\xab" * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ab" * 31,
        "ab" * 33,
        "a" * 63,
        "zz" * 32,
        "ab " * 32,
        "ab" * 31 + "  ",
        "0x" + "ab" * 31,
        "\N{ARABIC-INDIC DIGIT ONE}" * 64,
    ],
    ids=[
        "empty",
        "short",
        "long",
        "odd",
        "not-hex",
        "spaced",
        "padded",
        "prefixed",
        "other-digits",
    ],
)
def test_malformed_index_key_is_rejected_without_being_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        keys.parse_index_key(text)
    assert str(caught.value) == "index_key must be 32 bytes (64 hex digits)"


def test_wrapped_dek_takes_its_documented_form() -> None:
    wrapped = keys.wrap_dek(KEK, keys.generate_dek(), INDEX_ID)
    assert len(wrapped) == 1 + 12 + 32 + 16
    assert wrapped[0] == 2
    assert keys.demands_header(wrapped)


def test_each_wrap_is_different_and_unwraps() -> None:
    dek = keys.generate_dek()
    one, other = keys.wrap_dek(KEK, dek, INDEX_ID), keys.wrap_dek(KEK, dek, INDEX_ID)
    assert one != other
    assert keys.unwrap_dek(KEK, one, INDEX_ID) == keys.unwrap_dek(KEK, other, INDEX_ID) == dek


def test_another_kek_is_rejected() -> None:
    wrapped = keys.wrap_dek(KEK, keys.generate_dek(), INDEX_ID)
    with pytest.raises(KeyRejected):
        keys.unwrap_dek(os.urandom(32), wrapped, INDEX_ID)


def test_dek_of_another_index_is_rejected() -> None:
    wrapped = keys.wrap_dek(KEK, keys.generate_dek(), INDEX_ID)
    with pytest.raises(KeyRejected):
        keys.unwrap_dek(KEK, wrapped, uuid.UUID(int=8))


@pytest.mark.parametrize("damage", [b"", b"\x01", b"\x03" + bytes(60), b"\x01" + bytes(61)])
def test_wrapped_dek_of_unknown_format_is_not_the_callers_fault(damage: bytes) -> None:
    with pytest.raises(DataCorrupted):
        keys.unwrap_dek(KEK, damage, INDEX_ID)


def test_kek_of_16_bytes_is_not_taken_for_aes_128() -> None:
    with pytest.raises(InvalidInput):
        keys.wrap_dek(bytes(16), keys.generate_dek(), INDEX_ID)


def test_every_label_and_index_has_its_own_keys() -> None:
    derived = [keys.IndexKeys.derive(KEK, uuid.UUID(int=number)) for number in (1, 2)]
    secrets = [secret for of in derived for secret in (of.blind_key, of.token_key, of.sketch_key)]
    assert len(set(secrets)) == len(secrets)


def test_repr_shows_no_key() -> None:
    index_keys = keys.IndexKeys.derive(KEK, INDEX_ID)
    secrets = [KEK, index_keys.blind_key, index_keys.token_key, index_keys.sketch_key]
    shown = repr(index_keys) + repr(index_keys.contents)
    assert not any(secret.hex() in shown or repr(secret)[2:-1] in shown for secret in secrets)


def test_keys_that_nobody_holds_are_gone_at_once() -> None:
    """Without the garbage collector, which does not come to a process at rest."""
    index_keys = keys.IndexKeys.derive(KEK, INDEX_ID)
    writer = keys.WriterKeys(index_keys.write_key(), INDEX_ID)
    sealed = writer.contents.seal(bytes(16), b"text")
    assert index_keys.contents.open(bytes(16), sealed) == b"text"
    assert (
        index_keys.parameters.open(bytes(16), writer.parameters.seal(bytes(16), b"text")) == b"text"
    )
    held: list[weakref.ref[object]] = [
        weakref.ref(one) for one in (index_keys, writer, index_keys._sessions)
    ]
    gc.disable()
    try:
        del index_keys, writer
        assert [one() for one in held] == [None, None, None]
    finally:
        gc.enable()
