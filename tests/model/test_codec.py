from __future__ import annotations

import dataclasses
import enum
import math
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle import defaults
from treadle.errors import (
    ConfigurationError,
    InvalidPayload,
    PayloadTooLarge,
    SignatureMismatch,
    UndecodablePayload,
)
from treadle.model.codec import BytesCodec, CodecRegistry, JsonCodec, MessagePackCodec, check_size

BOTH = pytest.mark.parametrize("codec", [JsonCodec(), MessagePackCodec()], ids=["json", "msgpack"])


@dataclasses.dataclass
class Point:
    x: float
    label: str = ""


class Box(msgspec.Struct):
    inner: Any


class Wild(enum.Enum):
    NAN = math.nan


class Text(str):
    pass


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
STORABLE = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)
BAD = st.sampled_from(
    [
        math.nan,
        math.inf,
        -math.inf,
        2**64,
        2**70,
        -(2**63) - 1,
        "a\0b",
        "\0",
        "\ud800",
        "é\udfff",
        1j,
        object(),
    ]
)


def nest(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@BOTH
@given(value=STORABLE)
def test_storable_data_comes_back_equal(codec: JsonCodec, value: object) -> None:
    """Plain data within the rules survives a round trip."""
    assert codec.decode(codec.encode(value), Any) == value


@BOTH
@given(bad=BAD, around=st.lists(SCALARS), name=TEXT)
def test_one_bad_value_is_refused_anywhere(
    codec: JsonCodec, bad: object, around: list[object], name: str
) -> None:
    """A value that cannot be stored is refused whatever surrounds it."""
    for value in (bad, [*around, bad], {name: [bad]}, (around, {"x": bad}), Point(bad, ""), Box([bad])):  # type: ignore[arg-type]
        with pytest.raises(InvalidPayload):
            codec.encode(value)


@BOTH
@given(key=st.sampled_from(["\0", "\ud800", 2**70, math.nan, math.inf, -math.inf]))
def test_bad_keys_are_refused(codec: JsonCodec, key: object) -> None:
    """Keys obey the rules of values: msgspec alone would write a NaN key."""
    with pytest.raises(InvalidPayload):
        codec.encode({"fine": {key: 1}})


@BOTH
@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"args": [{"user": {"a b": Point(math.nan)}}]}, "$.args[0].user['a b'].x is nan"),
        ([1, 2**70], "$[1] is an integer beyond 64 bit"),
        ({"a": (1, "x\0")}, "$.a[1] contains a NUL"),
        ({"a": {"\ud800": 1}}, "$.a['\\ud800'] contains a lone surrogate"),
        (Box({"k": 1j}), "$.inner.k is a value of type complex"),
        (Wild.NAN, "$ is nan"),
        (object(), "$ is a value of type object"),
        ({"f": sys.stdout}, "$.f is a value of type"),
    ],
)
def test_the_refusal_names_the_path(codec: JsonCodec, value: object, path: str) -> None:
    """The message starts with the path of the offending value."""
    with pytest.raises(InvalidPayload) as caught:
        codec.encode(value)
    assert str(caught.value).startswith(path)


@BOTH
def test_nesting_has_a_cap_and_loops_are_named(codec: JsonCodec) -> None:
    """Values are stored up to the nesting cap, refused beyond, and a loop is called one."""
    at_cap = nest(defaults.NESTING_CAP)
    assert codec.decode(codec.encode(at_cap), Any) == at_cap
    with pytest.raises(InvalidPayload, match="nested deeper than 200"):
        codec.encode(nest(defaults.NESTING_CAP + 1))
    loop: list[object] = []
    loop.append({"again": loop})
    with pytest.raises(InvalidPayload, match=r"\$\[0\].again contains itself"):
        codec.encode(loop)


@BOTH
def test_shared_values_and_wide_values_are_no_loop(codec: JsonCodec) -> None:
    """The same list twice, or thousands of brackets side by side, are stored."""
    shared = [None]
    value = [shared, shared, *([] for _ in range(1000)), "[" * 1000]
    assert codec.decode(codec.encode(value), Any) == value


@BOTH
@pytest.mark.parametrize("text", ["null", "\\u0000", "9" * 40, 'nan"', '"inf"', "{[" * 500])
def test_text_that_only_looks_suspicious_is_stored(codec: JsonCodec, text: str) -> None:
    """The quick check on bytes may be wrong, the walk behind it is not."""
    assert codec.decode(codec.encode({text: [text, None]}), Any) == {text: [text, None]}


@BOTH
def test_typed_values_and_subclasses_of_text(codec: JsonCodec) -> None:
    """Types are rebuilt when asked for; a subclass of str is stored as its text."""
    moment = datetime(2030, 1, 2, tzinfo=UTC)
    assert codec.decode(codec.encode({"a": moment}), dict[str, datetime]) == {"a": moment}
    assert codec.decode(codec.encode([Decimal("1.10"), timedelta(1)]), tuple[Decimal, timedelta]) == (
        Decimal("1.10"),
        timedelta(1),
    )
    assert codec.decode(codec.encode([Text("é")]), Any) == ["é"]
    with pytest.raises(InvalidPayload, match="NUL"):
        codec.encode([Text("\0")])


@BOTH
@given(data=st.binary(max_size=60))
def test_any_bytes_decode_or_raise_a_payload_error(codec: JsonCodec, data: bytes) -> None:
    """Stored bytes can be anything: the only errors are ours."""
    for type_ in (Any, Point, list[int]):
        try:
            codec.decode(data, type_)
        except (UndecodablePayload, SignatureMismatch):
            continue


def test_broken_and_ill_typed_bytes_are_told_apart() -> None:
    """Broken bytes are undecodable; readable ones of another type are a mismatch."""
    codec = JsonCodec()
    for broken in (b"", b"{", b'"\xff"', b"[" * 5000, b"1 2"):
        with pytest.raises(UndecodablePayload):
            codec.decode(broken, Any)
    with pytest.raises(SignatureMismatch, match=r"Expected `int`, got `str` - at `\$\[0\]`"):
        codec.decode(b'["a"]', list[int])
    with pytest.raises(ConfigurationError, match="cannot be stored"):
        codec.decode(b"1", int | complex)


def test_bytes_codec_passes_bytes_through() -> None:
    """Bytes go in and come out unchanged; anything else is refused."""
    assert BytesCodec().decode(BytesCodec().encode(b"\0\xff"), Any) == b"\0\xff"
    with pytest.raises(InvalidPayload, match="takes bytes only"):
        BytesCodec().encode("text")


def test_registry_finds_by_name_and_names_the_known_ones() -> None:
    """An unknown codec is refused with the list of known ones; bad names are refused."""

    class Custom(JsonCodec):
        name = "my.codec"

    registry = CodecRegistry(Custom())
    assert registry.get("my.codec").name == "my.codec"
    assert set(registry) == {"json", "msgpack", "bytes", "my.codec"}
    assert len(registry) == 4
    with pytest.raises(ConfigurationError, match=r"'yaml'.*bytes, json, msgpack, my\.codec"):
        registry.get("yaml")
    with pytest.raises(ConfigurationError, match="Two codecs"):
        CodecRegistry(Custom(), Custom())
    for name in ("", "Json", "1a", "a" * 33, "a b", "a\n"):
        Custom.name = name
        with pytest.raises(ConfigurationError, match="cannot be used"):
            CodecRegistry(Custom())


def test_size_is_checked_with_size_and_cap_in_the_message() -> None:
    """The cap itself is allowed; one byte more is refused, naming both."""
    check_size(b"x" * 10, 10, "arguments of f")
    with pytest.raises(PayloadTooLarge, match=r"arguments of f take 11 bytes, more than the cap of 10"):
        check_size(b"x" * 11, 10, "arguments of f")


@BOTH
def test_pydantic_models_travel_nested(codec: JsonCodec) -> None:
    """Pydantic models are stored by their JSON dump and validated on the way back."""
    pydantic = pytest.importorskip("pydantic")
    User: Any = pydantic.create_model("User", name=(str, ...), born=(datetime, ...), score=(float, 0.0))
    user = User(name="Ada", born=datetime(2000, 1, 1, tzinfo=UTC))
    assert codec.decode(codec.encode({"u": [user]}), dict[str, list[User]]) == {"u": [user]}
    with pytest.raises(SignatureMismatch, match="name"):
        codec.decode(codec.encode({"name": 1}), User)
    with pytest.raises(InvalidPayload, match=r"\$\.u\[0\]\.score is nan"):
        codec.encode({"u": [User(name="Ada", born=user.born, score=math.nan)]})
