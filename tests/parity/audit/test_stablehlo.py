"""Each fact is read from a program that has it, and not from one that hasn't."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from parity.audit.facts import Array, Facts
from parity.audit.stablehlo import read_module

T = 384
NARROW, WIDE = (jax.ShapeDtypeStruct((T, 64), dtype) for dtype in (jnp.bfloat16, jnp.float32))


def read(function: Callable, *shapes: Any, platform: str = "cuda", donate: tuple[int, ...] = ()) -> Facts:
    lowered = jax.jit(function, donate_argnums=donate).trace(*shapes).lower(lowering_platforms=(platform,))
    return read_module(lowered.compiler_ir("stablehlo"), T)


def test_a_planted_float32_factor_is_found() -> None:
    facts = read(lambda a, b: (a.T @ a, b.T @ b, a.T @ a), NARROW, WIDE)
    assert {(str(each), each.count) for each in facts.matmuls} == {
        ("bf16[64,384] × bf16[384,64]", 2),
        ("f32[64,384] × f32[384,64]", 1),
    }
    assert [each.narrow for each in facts.matmuls] == [True, False]


def test_a_dot_product_of_rows_is_no_matmul() -> None:
    assert read(lambda a: jnp.einsum("td,td->t", a, a), WIDE).matmuls == ()
    assert read(lambda a: jnp.einsum("td,sd->ts", a, a), WIDE).matmuls != ()


def test_what_a_function_or_a_loop_calls_is_read() -> None:
    inner = jax.jit(lambda a: a.T @ a)
    called = read(lambda a, b: inner(a) + inner(b), NARROW, NARROW)
    assert [each.count for each in called.matmuls] == [2]
    looped = read(lambda a: jax.lax.fori_loop(0, 3, lambda _, x: x @ (a.T @ a), a), NARROW)
    assert sum(each.count for each in looped.matmuls) == 2


def test_the_optimizer_is_known_by_its_scope() -> None:
    def step(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.named_scope("optimizer"):
            own = jax.lax.fori_loop(0, 3, lambda _, x: (x @ x.T) @ x, a)
        return a.T @ a, own

    facts = read(step, WIDE)
    assert sorted(each.optimizer for each in facts.matmuls) == [False, True, True]


def test_a_planted_square_is_found() -> None:
    facts = read(lambda a: jax.nn.softmax(a @ a.T) @ a, WIDE)
    assert Array("f32", (T, T)) in facts.quadratic
    assert read(lambda a: (a.T @ a) @ a.T, WIDE).quadratic == ()


def test_donated_are_the_arguments_that_an_output_takes() -> None:
    assert read(lambda a, b: (a + 1, b + 1), WIDE, WIDE, donate=(0, 1)).donated == 2
    assert read(lambda a, b: (a + 1, b + 1), WIDE, WIDE, donate=(0,)).donated == 1
    assert read(lambda a, b: (a + 1, b + 1), WIDE, WIDE).donated == 0


def test_a_planted_host_callback_is_found() -> None:
    """In the program for a CPU: jax lowers them for the process's own devices alone."""

    def printing(a: jax.Array) -> jax.Array:
        jax.debug.print("{}", a[0, 0])
        return a + 1

    assert "callback" in read(printing, WIDE, platform="cpu").callbacks[0]
    assert read(lambda a: a + 1, WIDE, platform="cpu").callbacks == ()
