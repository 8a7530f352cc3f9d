"""The sizes of a model: what does not fit is an error."""

import pytest
from helpers import L, config

from mini_undivided.support.errors import UserError


@pytest.mark.parametrize(("change", "said"), [
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"), ({"vocab_size": -1}, "vocab_size"),
    ({"ffn_layers": [-1]}, "layer -1 is out of range")])
def test_sizes_that_do_not_fit_are_errors(change, said):
    """Sizes that do not fit together are an error that says which."""
    with pytest.raises(UserError, match=said):
        config(**change)


def test_ffn_layers_is_a_sorted_list_once_a_config_is_built():
    """ffn_layers is sorted, None stands for all layers, and a repeated number counts once."""
    assert config(ffn_layers=[3, 1, 3]).ffn_layers == [1, 3]
    assert config(ffn_layers=None).ffn_layers == list(range(L))
    assert config(ffn_layers=[]).ffn_layers == []
