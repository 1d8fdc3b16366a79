"""Chunks and pages of a sealed index, sealed and opened.

    place     name of the chunk (16); of a root: zeros
    context   kind (1) ‖ 0 (3) ‖ generation (4) ‖ version of the encoder (4), little-endian
              of a root also: version of the layout (8) ‖ open epoch (8) ‖ first epoch (8)

Place and context are bound into the sealed value (`crypto.aead`), so that a chunk opens under its
own name, for what it is, and for the generation and the encoder that it was made for. What writers
without the right to read have sealed in a session opens as a fresh chunk only.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from app.crypto import aead
from app.crypto.keys import IndexKeys
from app.engine.lists import chunk_format, layout_format
from app.engine.lists.entries import Entries
from app.engine.lists.layout_format import NAME_BYTES, Root
from app.store.chunks import ChunkRow, LayoutRow
from app.store.indexes import StaleIndex

_CONTEXT = struct.Struct("<BxxxII")
_ROOT_CONTEXT = struct.Struct("<QQQ")


class Kind(IntEnum):
    """What a sealed value is."""

    ENTRIES = 1
    ROOT = 2
    DIRECTORY = 3
    CENTROIDS = 4


@dataclass(frozen=True, slots=True)
class Sealing:
    """Seals and opens what belongs to one generation of an index's lists, made with one encoder."""

    keys: IndexKeys = field(repr=False)
    generation: int
    encoder_version: int

    def fresh(self, entries: Entries) -> Iterator[ChunkRow]:
        """Seal `entries` as fresh chunks."""
        return self._chunks(self.keys.fresh_chunks, entries)

    def listed(self, entries: Entries) -> Iterator[ChunkRow]:
        """Seal `entries` as chunks of lists."""
        return self._chunks(self.keys.chunks, entries)

    def page(self, kind: Kind, data: bytes) -> ChunkRow:
        """Seal a page of the layout."""
        return self._row(self.keys.layout, kind, data)

    def root(self, layout: LayoutRow, root: Root) -> bytes:
        """Seal the root of `layout`."""
        return self.keys.layout.seal(aead.INDEX_LEVEL, root.to_bytes(), self._root_context(layout))

    def open_fresh(self, row: ChunkRow) -> Entries:
        """Open a fresh chunk. Raises `DataCorrupted`, `StaleIndex` for another generation."""
        return self._entries(self.keys.fresh_chunks, row)

    def open_listed(self, row: ChunkRow) -> Entries:
        """Open a chunk of lists. Raises `DataCorrupted`, `StaleIndex` for another generation."""
        return self._entries(self.keys.chunks, row)

    def open_page(self, kind: Kind, row: ChunkRow) -> bytes:
        """Open a page of the layout. Raises `DataCorrupted`."""
        context = self._context(kind)
        return self.keys.layout.open_array(row.name, row.sealed_entries, context).tobytes()

    def open_root(self, layout: LayoutRow) -> Root:
        """Open the root of `layout`. Raises `DataCorrupted`."""
        opened = self.keys.layout.open_array(
            aead.INDEX_LEVEL, layout.sealed_root, self._root_context(layout)
        )
        return layout_format.root_from_bytes(opened.tobytes())

    def _chunks(self, sealer: aead.Sealer, entries: Entries) -> Iterator[ChunkRow]:
        for part in chunk_format.parts(entries):
            yield self._row(sealer, Kind.ENTRIES, chunk_format.to_bytes(part))

    def _row(self, sealer: aead.Sealer, kind: Kind, data: bytes) -> ChunkRow:
        name = os.urandom(NAME_BYTES)
        sealed = sealer.seal(name, data, self._context(kind))
        return ChunkRow(name, self.generation, self.encoder_version, sealed)

    def _entries(self, sealer: aead.Sealer, row: ChunkRow) -> Entries:
        if (row.generation, row.encoder_version) != (self.generation, self.encoder_version):
            raise StaleIndex
        context = self._context(Kind.ENTRIES)
        opened = sealer.open_array(row.name, row.sealed_entries, context)
        try:
            return chunk_format.from_array(opened)
        finally:
            opened.fill(0)

    def _context(self, kind: Kind) -> bytes:
        return _CONTEXT.pack(kind, self.generation, self.encoder_version)

    def _root_context(self, layout: LayoutRow) -> bytes:
        numbers = (layout.version, layout.open_epoch, layout.first_epoch)
        return self._context(Kind.ROOT) + _ROOT_CONTEXT.pack(*numbers)
