"""Commentaries of Bible software: SWORD modules of the driver zCom4."""

import struct
import zlib

_RECORD = struct.Struct("<3I")


def read_zcom4(index: bytes, blocks: bytes) -> list[str]:
    """The texts of one testament of a zCom4 module.

    Args:
        index: content of the file `ot.czs` (chapters; books are `.bzs`):
            records of 12 bytes, the offset, the size and the unpacked size of
            a block.
        blocks: content of the file `ot.czz`: the zlib blocks.

    Returns:
        One text for each block, with its markup; empty blocks left out.

    Raises:
        ValueError: if the index does not fit the blocks.
    """
    if len(index) % _RECORD.size:
        raise ValueError(
            f"index must be records of {_RECORD.size} bytes; received "
            f"{len(index)} bytes."
        )
    texts = []
    for offset, size, unpacked in _RECORD.iter_unpack(index):
        if size:
            block = _unpack(blocks[offset : offset + size], unpacked)
            texts.append(block.decode("utf-8"))
    return texts


def _unpack(block, size):
    try:
        text = zlib.decompress(block)
    except zlib.error as error:
        raise ValueError(
            f"blocks must be zlib data where index says; received {error}."
        ) from None
    if len(text) != size:
        raise ValueError(
            f"a block must unpack to {size} bytes as index says; received "
            f"{len(text)}."
        )
    return text
