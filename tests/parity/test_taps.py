"""Names of activations: by module and layer, in order of computation; values that a user's function names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.taps import OPERATIONS, Taps, collecting, tap, tap_module


def test_a_module_has_one_name_for_its_input_and_one_for_its_output():
    taps = Taps()
    taps.after("embed_tokens", 0)
    taps.before("layers.3.input_layernorm", "before")
    taps.after("layers.3.input_layernorm", 1)
    taps.after("layers.3.self_attn.q_proj", 2)
    taps.before("layers.3.self_attn.o_proj", 3)
    taps.after("layers.3.self_attn.o_proj", 4)
    taps.after("layers.3.mlp.act", "no name")
    taps.after("layers.3", 5)
    taps.after("layers", "no name")
    taps.after("norm", 6)
    assert taps.recorded == {
        "embedding": 0,
        "layers.3 norm 1": 1,
        "layers.3 q": 2,
        "layers.3 mixed values": 3,
        "layers.3 attention": 4,
        "layers.3 after MLP": 5,
        "final norm": 6,
    }
    assert list(taps.recorded.values()) == list(range(7))


def test_queries_and_keys_belong_to_the_layer_that_was_entered_last():
    taps = Taps()
    attend = taps.attention(lambda q, k, v, scale: q + k + v + scale)
    for layer in (0, 12):
        taps.before(f"layers.{layer}.input_layernorm", None)
        assert attend(layer + 1, layer + 2, 3, scale=4) == 2 * layer + 10
    assert taps.recorded == {
        "layers.0 q rotated": 1,
        "layers.0 k rotated": 2,
        "layers.12 q rotated": 13,
        "layers.12 k rotated": 14,
    }
    assert {name.partition(" ")[2] for name in taps.recorded} < set(OPERATIONS)


def test_the_first_of_several_embeddings_counts():
    taps = Taps()
    taps.after("embed_tokens", "as input")
    taps.after("embed_tokens", "as head")
    assert taps.recorded == {"embedding": "as input"}


def test_values_are_collected_within_a_context_alone():
    def function(x: float) -> float:
        return 2 * tap("hidden", x + 1)

    assert function(1.0) == 4
    with collecting() as outer:
        function(1.0)
        with collecting() as inner:
            function(5.0)
        function(2.0)
    function(7.0)
    assert (outer.values, inner.values) == ({"hidden": 2.0, "hidden (2)": 3.0}, {"hidden": 6.0}), (
        "a name that comes again is numbered"
    )
    with pytest.raises(RuntimeError, match="stop"), collecting():
        raise RuntimeError("stop")
    assert tap("hidden", 8) == 8
    assert outer.values == {"hidden": 2.0, "hidden (2)": 3.0}


def test_values_under_jit_are_returned_from_the_traced_function():
    @jax.jit
    def traced(x: jax.Array) -> dict[str, jax.Array]:
        with collecting() as collected:
            tap("hidden", x + 1)
        return collected.values

    assert float(traced(jnp.array(1.0))["hidden"]) == 2


def test_the_first_array_of_a_submodules_output_is_collected_as_its_own():
    tap_module("block", 1.0)
    with collecting() as collected:
        tap("hidden", 1.0)
        tap_module("block", {"none": None, "y": np.ones(2), "z": np.zeros(2)})
        tap_module("block", (np.zeros(3),))
        tap_module("empty", None)
    assert list(collected.values) == ["hidden", "block", "block (2)"]
    assert collected.modules == {"block", "block (2)"}
    assert collected.values["block"].sum() == 2
