"""Token files: a tokenised corpus on disk, cached by the hash of text and tokenizer.

A token file is a numpy file (.npy) of one dimension, two bytes a token where the vocabulary allows
it, else four; numpy's header says which, and how many.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mini_undivided.support.errors import UserError

BATCH_CHARACTERS = 1 << 21  # tokenised at once: enough for all cores, small enough for any memory


class TokenWriter:
    """Writes a token file piece by piece, without knowing how long it will be."""

    def __init__(self, path, vocab_size):
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.count = 0
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self.write_header()

    def write_header(self):
        """numpy's header; it leaves room for a length that grows."""
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, ids):
        """Append an array of token ids."""
        self.count += len(ids)
        self.file.write(np.asarray(ids, dtype=self.dtype).tobytes())

    def close(self):
        """Complete the header and close the file."""
        self.file.seek(0)
        self.write_header()
        self.file.close()


def read_tokens(path, vocab_size):
    """Map a token file into memory → array of ids. Raises UserError if it is damaged."""
    advice = "delete it and it will be written again"
    try:
        tokens = np.load(path, mmap_mode="r")
        if tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
            raise ValueError("it is no list of tokens")
        if len(tokens) and tokens.max() >= vocab_size:
            raise ValueError("a token is not in the vocabulary")
    except Exception as error:  # numpy raises many kinds
        raise UserError(f"{path} is damaged ({error}); {advice}") from None
    return tokens


def batches(pieces):
    """Group pieces of text into lists of about BATCH_CHARACTERS characters."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_ahead(tokenizer, pieces):
    """Yield (pieces, encodings), a batch at a time.

    The library tokenises a batch on all cores while the caller handles the one before.
    """
    with ThreadPoolExecutor(1) as pool:
        ready = None
        for batch in batches(pieces):
            texts = [piece.text for piece in batch]
            job = pool.submit(tokenizer.encode_batch_fast, texts, add_special_tokens=False)
            if ready:
                yield ready[0], ready[1].result()
            ready = batch, job
        if ready:
            yield ready[0], ready[1].result()
