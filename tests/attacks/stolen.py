"""What a thief of the database holds: the sketches as `app.engine.sketches.encoder.Encoder` stores
them, flips and all.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from app.crypto import tokens
from app.domain import Matrix, Metric, Sketches
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.parameters import COINS_OF_BITS, EncoderParameters

FIT_SAMPLE = 10_000


@dataclass(frozen=True, slots=True)
class Setting:
    """What an index can be created with."""

    bits: int
    noise: float

    def __str__(self) -> str:
        return f"{self.bits} bits, {100 * self.noise:g} % flips"


@dataclass(frozen=True, slots=True)
class StolenIndex:
    """Stored sketches as ±1 (n, m) and, for the judge alone, the encoder and the truth: centred
    unit vectors (n, d).
    """

    setting: Setting
    encoder: Encoder
    signs: Matrix
    truth: Matrix

    def lift(self, vectors: Matrix) -> Matrix:
        """Centred unit vectors: what an attacker tries to find. The mean is taken to be public."""
        return self.encoder._lift(vectors)


def steal(vectors: Matrix, setting: Setting, secret: str = "one") -> StolenIndex:
    """Store `vectors` in a trained cosine index with the keys of `secret`, and take the table."""
    encoder = make_encoder(vectors, setting, secret)
    stored = encoder.encode_items(vectors, item_keys(secret, len(vectors)))
    return StolenIndex(setting, encoder, as_signs(stored), encoder._lift(vectors))


def make_encoder(
    vectors: Matrix, setting: Setting, secret: str, coins: int = COINS_OF_BITS
) -> Encoder:
    """Return the encoder of a trained index that holds `vectors`."""
    fitted = EncoderParameters.fit(1, Metric.COSINE, vectors[:FIT_SAMPLE])
    parameters = EncoderParameters(1, fitted.mean, fitted.scale, coins)
    key = hashlib.sha256(b"sketch" + secret.encode()).digest()
    return Encoder(key, vectors.shape[1], Metric.COSINE, setting.bits, setting.noise, parameters)


def item_keys(secret: str, count: int) -> list[bytes]:
    """Item keys of the ids 0, 1, 2 … in the index of `secret`."""
    blind_key = hashlib.sha256(b"blind" + secret.encode()).digest()
    return tokens.item_keys(blind_key, (str(number) for number in range(count)))


def as_signs(sketches: Sketches) -> Matrix:
    """Packed bits (n, m / 8) as ±1 (n, m)."""
    return np.unpackbits(sketches, axis=1).astype(np.float32) * 2 - 1
