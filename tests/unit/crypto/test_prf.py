import hmac

import pytest

from app.crypto.prf import Prf


@pytest.mark.parametrize("key_length", [0, 1, 32, 63, 64, 65])
@pytest.mark.parametrize("length", [0, 1, 55, 56, 64, 1_552, 5_000])
def test_it_is_hmac_however_often_it_is_used(key_length: int, length: int) -> None:
    key, message = b"k" * key_length, b"m" * length
    prf = Prf(key)
    assert [prf.digest(message), prf.digest(b"other"), prf.digest(message)] == [
        hmac.digest(key, text, "sha256") for text in (message, b"other", message)
    ]
