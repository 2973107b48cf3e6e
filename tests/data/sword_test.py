import struct
import zlib

import pytest

from keras_switch.data.sword import read_zcom4


def module_of(*texts):
    """The index and the blocks, an empty block last."""
    blocks = [zlib.compress(text.encode()) for text in texts]
    index, offset = b"", 0
    for text, block in zip(texts, blocks, strict=True):
        size = len(text.encode())
        index += struct.pack("<3I", offset, len(block), size)
        offset += len(block)
    return index + struct.pack("<3I", offset, 0, 0), b"".join(blocks)


def test_each_block_is_a_text():
    assert read_zcom4(*module_of("one \u2022", "two")) == ["one \u2022", "two"]
    assert read_zcom4(b"", b"") == []


def test_damage_is_refused():
    index, blocks = module_of("one", "two")
    with pytest.raises(ValueError, match="records of 12 bytes; received 35"):
        read_zcom4(index[:-1], blocks)
    with pytest.raises(ValueError, match="zlib data where index says"):
        read_zcom4(index, blocks[:-3])
    longer = struct.pack("<3I", 0, len(blocks) // 2, 4)
    with pytest.raises(ValueError, match="unpack to 4 bytes.*received 3"):
        read_zcom4(longer, blocks)
