"""Claims about the retry-delay language, with Python's own float arithmetic as the oracle."""

import math
from contextlib import suppress
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from waypost.domain.errors import Invalid
from waypost.domain.expression import WAIT_MS_MAX, check_expression, compile_expression

ORACLE = {
    "__builtins__": {},
    "pow": math.pow,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "abs": abs,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
    "round": lambda x: float(int(Decimal(x).to_integral_value(ROUND_HALF_UP))),
    "min": min,
    "max": max,
}

NUMBERS = st.integers(0, 40_000).map(lambda quarters: repr(quarters / 4))


def _larger(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
        inner.map(lambda x: f"({x})"),
        inner.map(lambda x: f"-{x}"),
        st.tuples(st.sampled_from(["exp", "sqrt", "abs", "floor", "ceil", "round"]), inner).map(
            lambda call: f"{call[0]}({call[1]})"
        ),
        st.tuples(st.sampled_from(["pow", "min", "max"]), inner, inner).map(
            lambda call: f"{call[0]}({call[1]}, {call[2]})"
        ),
    )


EXPRESSIONS = st.recursive(NUMBERS | st.just("retried"), _larger, max_leaves=12)


def _oracle(text, retried):
    try:
        value = eval(text, ORACLE, {"retried": float(retried)})
    except (ArithmeticError, ValueError):
        return None
    return value if math.isfinite(value) else None


@settings(max_examples=500)
@given(EXPRESSIONS, st.integers(0, 100))
def test_an_expression_is_worth_what_python_makes_of_it(text, retried):
    assume(len(text) <= 256 and text.count("(") + text.count("-") < 15)
    assert compile_expression(text).value(retried) == _oracle(text, retried)


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ("1000", [1000, 1000, 1000]),
        ("2000 * retried", [0, 2000, 4000]),  # W61
        ("1000 * (1 + retried)", [1000, 2000, 3000]),
        ("pow(2, retried) * 1000", [1000, 2000, 4000]),  # W60
        ("max(1000, pow(2, retried) * 100)", [1000, 1000, 1000]),
        ("pow(retried, 2) * 1000", [0, 1000, 4000]),
        ("sqrt(16) * exp(0) + abs(-3)", [7, 7, 7]),
        ("floor(1.7) + ceil(1.2) + round(2.5) - round(-2.5)", [9, 9, 9]),
        ("min(5, retried)", [0, 1, 2]),
        ("1e3", [1000, 1000, 1000]),
        (".5*100", [50, 50, 50]),
        ("10 - 4 - 3", [3, 3, 3]),
        ("64 / 4 / 2", [8, 8, 8]),
        ("-1000", [0, 0, 0]),
        ("0", [0, 0, 0]),
        ("9.99", [9, 9, 9]),
        ("1000000000", [WAIT_MS_MAX] * 3),
        ("\t15000 ", [15000] * 3),
    ],
)
def test_documented_expressions_wait_as_long_as_they_say(text, waits):
    expression = compile_expression(text)
    assert [expression.wait_ms(retried) for retried in range(3)] == waits


@pytest.mark.parametrize(
    "text",
    [
        "pow(9, 9e9)",
        "1/0",
        "1/retried",
        "sqrt(-1)",
        "exp(1000)",
        "1e308*10",
        "0*(1e308*10)",
        "floor(1e308*10)",
    ],
)
def test_what_is_not_finite_waits_longest_and_is_refused_at_the_door(text):
    assert compile_expression(text).wait_ms(0) == WAIT_MS_MAX
    with pytest.raises(Invalid, match="not a finite number where retried is 0"):
        check_expression(text, retries_max=1)


def test_only_the_retries_that_may_come_are_checked():
    check_expression("1000 / (3 - retried)", retries_max=3)
    with pytest.raises(Invalid, match="retried is 3"):
        check_expression("1000 / (3 - retried)", retries_max=4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "1 +",
        "(1",
        "1)",
        "1 1",
        "2retried",
        "pow(1)",
        "pow(1, 2, 3)",
        "min()",
        "exp(1, 2)",
        "exp 1",
        "pow",
        "retried(1)",
        "2 ** 3",
        "2 ^ 3",
        "+1",
        "1 % 2",
        "1,2",
        "__import__",
        "retried.real",
        "RETRIED",
        "0x10",
        "1_000",
        "1e999",
        "nan",
        "inf",
        "1\n+1",
        "٣",
        "é",
        "1" * 257,
        "(" * 16 + "1" + ")" * 16,
        "-" * 16 + "1",
        "+".join(["1"] * 33),
    ],
)
def test_what_is_not_an_expression_is_refused(text):  # W62
    with pytest.raises(Invalid):
        compile_expression(text)


def test_the_bounds_themselves_are_allowed():
    compile_expression("(" * 15 + "1" + ")" * 15)
    compile_expression("-" * 15 + "1")
    assert compile_expression("+".join(["1"] * 32)).wait_ms(0) == 32


@settings(max_examples=500)
@given(st.text(alphabet="0123456789.eretidpowmaxin+-*/(), ", max_size=60))
def test_no_text_is_more_than_refused(text):
    with suppress(Invalid):
        assert 0 <= compile_expression(text).wait_ms(7) <= WAIT_MS_MAX
