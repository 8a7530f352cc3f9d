"""What all tests share: a cache of their own, and no more threads than a small machine has."""

import os
import tempfile

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def own_cache():
    """Gathered text and token files go to a folder that the session leaves behind nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINI_UNDIVIDED_CACHE"] = folder
        os.environ["HF_HUB_OFFLINE"] = "1"
        yield folder


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
