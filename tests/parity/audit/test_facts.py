"""What counts as large, as 16 bits and as T × T."""

from parity.audit.facts import Array, Facts, Matmul, quadratic


def matmul(dtype: str, rows: int, inner: int, columns: int, other: str = "bf16") -> Matmul:
    return Matmul((Array(dtype, (rows, inner)), Array(other, (inner, columns))), Array("f32", (rows, columns)))


def test_flops_are_those_of_the_matmul() -> None:
    assert matmul("bf16", 3, 5, 7).flops == 2 * 3 * 5 * 7


def test_both_factors_have_to_be_narrow() -> None:
    assert matmul("bf16", 3, 5, 7).narrow
    assert not matmul("f32", 3, 5, 7).narrow
    assert not matmul("bf16", 3, 5, 7, "f32").narrow


def test_large_are_those_with_the_flops() -> None:
    most, some, little = (matmul("f32", rows, 100, 100) for rows in (1500, 2, 1))
    assert Facts((most, some, little)).large == [most, some]
    assert Facts((little,)).large == [little]
    assert Facts().large == []


def test_a_square_of_the_length_is_found_however_it_is_laid_out() -> None:
    squares = [Array("f32", (2, 4, 384, 384)), Array("f32", (2, 768, 384)), Array("i1", (384, 384))]
    others = [Array("f32", (2, 384, 64)), Array("f32", (768, 768)), Array("f32", (384,)), Array("f32", (2, 0, 384))]
    assert quadratic([*others, *squares], 384) == (squares[0], squares[1], squares[2])
    assert quadratic(others, 384) == ()
