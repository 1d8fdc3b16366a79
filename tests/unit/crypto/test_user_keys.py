"""User tokens and the keys wrapped for them."""

import uuid

import pytest

from app.crypto import user_keys
from app.domain import Permission, UserToken
from app.errors import ApiKeyRejected, Forbidden

INDEX_ID = uuid.UUID(int=7)
ROOT_KEY = "an example root key"
TOKEN = user_keys.mint()


def test_a_token_is_read_back() -> None:
    text = user_keys.format_token(TOKEN, ROOT_KEY)
    assert len(text) == 82
    assert text.isascii()
    assert text.replace("-", "").replace("_", "").isalnum()
    assert user_keys.parse_token(text, ROOT_KEY) == TOKEN


def test_every_user_is_another() -> None:
    assert user_keys.mint() != user_keys.mint()


@pytest.mark.parametrize("root_key", ["", "another", ROOT_KEY + " ", ROOT_KEY.upper()])
def test_a_token_of_another_root_key_is_rejected(root_key: str) -> None:
    with pytest.raises(ApiKeyRejected):
        user_keys.parse_token(user_keys.format_token(TOKEN, root_key), ROOT_KEY)


def test_any_changed_character_is_rejected() -> None:
    text = user_keys.format_token(TOKEN, ROOT_KEY)
    for place, character in enumerate(text):
        for other in "AQgw_-z5":
            if other != character:
                with pytest.raises(ApiKeyRejected):
                    user_keys.parse_token(text[:place] + other + text[place + 1 :], ROOT_KEY)


@pytest.mark.parametrize(
    "text", ["", "cdbk_", "cdbk_1_", "cdbk_1_AA", "cdbk_1_" + "A" * 75, "cdbk_1_" + "é" * 75]
)
def test_what_is_no_token_is_rejected(text: str) -> None:
    with pytest.raises(ApiKeyRejected):
        user_keys.parse_token(text, ROOT_KEY)


def test_a_wrapped_key_unwraps_for_its_user_index_and_permission_only() -> None:
    wrapped = user_keys.wrap(TOKEN, b"a key", INDEX_ID, Permission.READ)
    assert user_keys.unwrap(TOKEN, wrapped, INDEX_ID, Permission.READ) == b"a key"
    others = [
        (user_keys.mint(), INDEX_ID, Permission.READ),
        (UserToken(bytes(16), TOKEN.user_key), INDEX_ID, Permission.READ),
        (TOKEN, uuid.UUID(int=8), Permission.READ),
        (TOKEN, INDEX_ID, Permission.WRITE),
    ]
    for token, index_id, permission in others:
        with pytest.raises(Forbidden):
            user_keys.unwrap(token, wrapped, index_id, permission)


@pytest.mark.parametrize("place", [0, 1, 13, -1])
def test_a_changed_wrapped_key_does_not_unwrap(place: int) -> None:
    wrapped = bytearray(user_keys.wrap(TOKEN, b"a key", INDEX_ID, Permission.READ))
    wrapped[place] ^= 1
    with pytest.raises(Forbidden):
        user_keys.unwrap(TOKEN, bytes(wrapped), INDEX_ID, Permission.READ)


@pytest.mark.parametrize("length", [0, 1, 13, 28])
def test_a_wrapped_key_cut_short_does_not_unwrap(length: int) -> None:
    wrapped = user_keys.wrap(TOKEN, b"", INDEX_ID, Permission.READ)
    with pytest.raises(Forbidden):
        user_keys.unwrap(TOKEN, wrapped[:length], INDEX_ID, Permission.READ)


def test_the_user_key_does_not_show_in_a_representation() -> None:
    assert repr(TOKEN.user_key) not in repr(TOKEN)
