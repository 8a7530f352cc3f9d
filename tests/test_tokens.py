"""Token files: what was written comes back, and what is damaged is refused."""

import pytest

from mini_undivided.support import token_files
from mini_undivided.support.errors import UserError


def test_four_bytes_where_two_are_too_few(tmp_path):
    """A vocabulary above 65,536 gets 32-bit ids, and they survive the round trip."""
    writer = token_files.TokenWriter(tmp_path / "big.tokens", 70_001)
    writer.write([3, 70_000, 5])
    writer.close()
    assert token_files.read_tokens(tmp_path / "big.tokens", 70_001).tolist() == [3, 70_000, 5]


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty"])
def test_damaged_token_files_are_refused(tmp_path, damage):
    """A token file that was cut short, or is not one at all, is an error.

    The error names the file and says what to do.
    """
    path = tmp_path / "a.npy"
    writer = token_files.TokenWriter(path, 99)
    writer.write(range(11))
    writer.close()
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-1], "foreign": b"x" * 64, "empty": b""}[damage])
    with pytest.raises(UserError, match="a.npy .* delete it"):
        token_files.read_tokens(path, 99)
