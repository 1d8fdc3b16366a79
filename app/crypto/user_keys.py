"""User tokens, and the keys of an index wrapped for one user.

    token          "cdbk_1_" ‖ base64url without padding of: user id (16) ‖ user key (32) ‖ tag (8)
    tag            first 8 bytes of HMAC-SHA256(tag key, "1" ‖ user id ‖ user key)
    tag key        HKDF-SHA256, salt = empty, input = root key, info = "sealdex/v1/user-token"

    wrapped key    version (1) = 0x02 ‖ nonce (12) ‖ ciphertext ‖ tag (16), where
                   ciphertext ‖ tag = AES-256-GCM(user key, nonce, key, AAD)
    AAD            "sealdex/v2/user" ‖ index UUID (16) ‖ user id (16) ‖ "read" or "write"

    Version 2 says that the row of the index has a sealed header. Version 1, with "sealdex/v1/user",
    is of before headers.

The tag says that the root key minted the token, before anything is looked up. A wrapped key moved
to another user, index or permission does not unwrap, so a permission cannot be granted by changing
the table.
"""

import base64
import binascii
import functools
import hmac
import os
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.crypto import aead, hkdf
from app.domain import Permission, UserToken
from app.errors import ApiKeyRejected, Forbidden

USER_ID_BYTES = 16

_TOKEN_PREFIX = "cdbk_1_"  # noqa: S105 - what every token begins with
_VERSION_DIGIT = b"1"
_USER_KEY_BYTES = 32
_TAG_BYTES = 8
_BODY_BYTES = USER_ID_BYTES + _USER_KEY_BYTES + _TAG_BYTES
# By version.
_WRAP_LABELS = {b"\x01": b"sealdex/v1/user", b"\x02": b"sealdex/v2/user"}
_VERSION = b"\x02"


def mint() -> UserToken:
    """Draw a new user."""
    return UserToken(os.urandom(USER_ID_BYTES), os.urandom(_USER_KEY_BYTES))


def format_token(token: UserToken, root_key: str) -> str:
    """Return the token as the client sends it: 82 characters that need no quoting in a header."""
    body = token.user_id + token.user_key + _tag(token, root_key)
    return _TOKEN_PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def parse_token(text: str, root_key: str) -> UserToken:
    """Read a token that `root_key` has minted. Raises `ApiKeyRejected` for anything else."""
    is_token = text.startswith(_TOKEN_PREFIX)
    body = _from_base64url(text.removeprefix(_TOKEN_PREFIX)) if is_token else b""
    token = UserToken(body[:USER_ID_BYTES], body[USER_ID_BYTES:-_TAG_BYTES])
    is_minted = hmac.compare_digest(body[-_TAG_BYTES:], _tag(token, root_key))
    if len(body) != _BODY_BYTES or not is_minted:
        raise ApiKeyRejected("Invalid API Key")
    return token


def wrap(token: UserToken, key: bytes, index_id: UUID, permission: Permission) -> bytes:
    """Wrap `key` for a user, bound to the index and the permission; different each time."""
    nonce = os.urandom(aead.NONCE_BYTES)
    aad = _WRAP_LABELS[_VERSION] + _aad(token, index_id, permission)
    return _VERSION + nonce + AESGCM(token.user_key).encrypt(nonce, key, aad)


def unwrap(token: UserToken, wrapped: bytes, index_id: UUID, permission: Permission) -> bytes:
    """Unwrap a user's key.

    Raises `Forbidden` when the key was not wrapped for this user, index and permission.
    """
    label = _WRAP_LABELS.get(wrapped[:1])
    if label is None or len(wrapped) < aead.OVERHEAD_BYTES:
        raise Forbidden("permission denied: the stored key of this user has an unknown format")
    nonce, ciphertext = wrapped[1 : aead.HEADER_BYTES], wrapped[aead.HEADER_BYTES :]
    aad = label + _aad(token, index_id, permission)
    try:
        return AESGCM(token.user_key).decrypt(nonce, ciphertext, aad)
    except InvalidTag as error:
        raise Forbidden("permission denied: the stored key of this user does not open") from error


def demands_header(wrapped: bytes) -> bool:
    """Whether the index of this wrapped key has a sealed header; true only if the key unwraps."""
    return wrapped[:1] == _VERSION


def _aad(token: UserToken, index_id: UUID, permission: Permission) -> bytes:
    return index_id.bytes + token.user_id + permission.value.encode()


def _tag(token: UserToken, root_key: str) -> bytes:
    message = _VERSION_DIGIT + token.user_id + token.user_key
    return hmac.digest(_tag_key(root_key), message, "sha256")[:_TAG_BYTES]


@functools.lru_cache(1)
def _tag_key(root_key: str) -> bytes:
    return hkdf.expand(hkdf.extract(b"", root_key.encode()), "user-token")


def _from_base64url(text: str) -> bytes:
    """Return the bytes, or none for what is not the one way to write them."""
    try:
        body = base64.b64decode(
            text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True
        )
    except (binascii.Error, UnicodeEncodeError):
        return b""
    # Bits beyond the last byte are ignored by the decoder: only one spelling of a token is good.
    return body if base64.urlsafe_b64encode(body).rstrip(b"=") == text.encode("ascii") else b""
