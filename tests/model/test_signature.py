from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypedDict
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ConfigurationError, InvalidPayload, SignatureMismatch, UndecodablePayload
from treadle.model.codec import BytesCodec, JsonCodec, MessagePackCodec
from treadle.model.signature import Arguments, Signature

JSON = JsonCodec()
BOTH = pytest.mark.parametrize("codec", [JSON, MessagePackCodec()], ids=["json", "msgpack"])
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


class Context:
    pass


class Colour(enum.Enum):
    RED = "red"


class Kind(enum.StrEnum):
    A = "a"


class Markup(str):
    pass


class Pair(NamedTuple):
    left: int
    right: str


class Row(TypedDict):
    n: int


@dataclass
class Item:
    when: datetime
    parts: list[Item] | None = None


@dataclass
class Other:
    x: int


class Custom:
    pass


def send(to: str, subject: str = "hi") -> str:
    return to + subject


def rich(
    item: Item,
    row: Row,
    pair: Pair,
    day: date,
    hour: time,
    span: timedelta,
    key: UUID,
    money: Decimal,
    colour: Colour,
    raw: bytes,
    tags: set[str],
    frozen: frozenset[int],
    fixed: tuple[int, str],
    maybe: Item | None,
    table: dict[int, list[Decimal]],
) -> None: ...


def mixed(a: int, /, b: int = 2, *rest: int, c: int, d: int = 4, **extra: int) -> None: ...


def roundtrip(function: Callable[..., object], *args: object, **kwargs: object) -> Arguments:
    signature = Signature.of(function)
    return signature.decode(JSON, signature.encode(JSON, args, kwargs))


def test_wire_form_is_by_name_and_without_defaults() -> None:
    """Arguments are stored by parameter name; a default not given is not stored."""
    signature = Signature.of(send)
    assert signature.encode(JSON, ("ada@example.org",), {}) == b'{"to":"ada@example.org"}'
    assert signature.encode(JSON, ("a",), {"subject": "hi"}) == b'{"to":"a","subject":"hi"}'
    assert signature.returns is str


@BOTH
def test_every_documented_type_comes_back(codec: JsonCodec) -> None:
    """Typed arguments are rebuilt as their types, nested and optional ones too."""
    now = datetime(2030, 1, 1, 12, tzinfo=UTC)
    args = (
        Item(now, [Item(now)]), Row(n=1), Pair(1, "x"), now.date(), time(3, 4), timedelta(hours=30), uuid4(),
        Decimal("1.10"), Colour.RED, b"\0\xff", {"a"}, frozenset({1}), (1, "x"), None, {1: [Decimal(2)]},
    )  # fmt: skip
    signature = Signature.of(rich)
    got, named = signature.decode(codec, signature.encode(codec, args, {}))
    assert got == []
    assert tuple(named.values()) == args
    assert [type(v) for v in named.values()] == [type(v) for v in args]


@BOTH
@given(
    a=st.integers(0, 9), rest=st.lists(st.integers(0, 9)), c=st.integers(0, 9),
    b=st.none() | st.integers(0, 9),
    extra=st.dictionaries(TEXT.filter(lambda k: k not in "bcd"), st.integers(0, 9)),
)  # fmt: skip
def test_every_kind_of_parameter_arrives(
    codec: JsonCodec, a: int, rest: list[int], c: int, b: int | None, extra: dict[str, int]
) -> None:
    """Positional-only, *args, keyword-only and **kwargs reach the function as they were given."""

    def seen(a: int, /, b: int = 2, *rest: int, c: int, d: int = 4, **extra: int) -> Any:
        return a, b, rest, c, d, extra

    args = (a,) if b is None else (a, b, *rest)
    kwargs = {"c": c, **extra}
    signature = Signature.of(mixed)
    got, named = signature.decode(codec, signature.encode(codec, args, kwargs))
    assert seen(*got, **named) == seen(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, r"send\(\) is missing the argument 'to'"),
        (("a", "b", "c"), {}, "takes at most 2 positional arguments, got 3"),
        (("a",), {"to": "b"}, "got the argument 'to' twice"),
        (("a",), {"cc": "b"}, "got an unexpected argument 'cc'"),
        ((5,), {}, r"Expected `str`, got `int` - at `\$\.to`"),
        ((datetime(2030, 1, 1),), {}, r"Expected `str`, got `datetime`"),
        ((None,), {}, r"Expected `str`, got `null`"),
        ((1j,), {}, r"Expected `str`, got `complex`"),
    ],
)
def test_wrong_calls_are_refused(args: tuple[Any, ...], kwargs: dict[str, Any], words: str) -> None:
    """A call that does not fit is refused in words, with the path and both types."""
    with pytest.raises(SignatureMismatch, match=words):
        Signature.of(send).encode(JSON, args, kwargs)


def test_text_is_no_substitute_for_bytes_or_dates_at_enqueue() -> None:
    """The check is strict: str is not taken for bytes or a date."""

    def f(raw: bytes = b"", day: date = date.min) -> None: ...

    for kwargs in ({"raw": "YWJj"}, {"day": "2030-01-01"}):
        with pytest.raises(SignatureMismatch, match="got `str`"):
            Signature.of(f).encode(JSON, (), kwargs)


def test_fields_of_instances_are_checked_too() -> None:
    """A dataclass instance with a wrong field inside is refused at enqueue, not in the worker."""

    def f(item: Item) -> None: ...

    with pytest.raises(SignatureMismatch, match=r"\$\.item\.when"):
        Signature.of(f).encode(JSON, (Item(when="never"),), {})  # type: ignore[arg-type]


def test_subclasses_of_str_and_int_are_accepted() -> None:
    """Marked-up text and str enums pass for str and arrive as str."""

    def f(text: str, number: int = 0) -> None: ...

    assert roundtrip(f, Markup("x"))[1] == {"text": "x"}
    assert roundtrip(f, Kind.A)[1] == {"text": "a"}


def test_unannotated_parameters_take_any_storable_value() -> None:
    """Without an annotation anything the codec can carry goes; the rest is refused with its path."""

    def f(x, y=None):  # type: ignore[no-untyped-def]
        return x

    assert roundtrip(f, {"a": [1, None]}) == ([], {"x": {"a": [1, None]}})
    with pytest.raises(InvalidPayload, match=r"\$\.x\.a\[0\] is nan"):
        roundtrip(f, {"a": [float("nan")]})
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidPayload, match="contains itself"):
        roundtrip(f, loop)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{}", "missing required field `to`"),
        (b'{"to":"a","old":1}', "unknown field `old`"),
        (b'{"to":1}', r"at `\$\.to`"),
        (b"[]", "Expected `object`"),
    ],
)
def test_stored_arguments_of_another_version_are_a_mismatch(data: bytes, words: str) -> None:
    """Missing, extra and ill-typed stored arguments are told in words."""
    with pytest.raises(SignatureMismatch, match=words):
        Signature.of(send).decode(JSON, data)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"to":"\xff"}'])
def test_broken_bytes_are_undecodable(data: bytes) -> None:
    """Broken bytes are not mistaken for a changed signature."""
    with pytest.raises(UndecodablePayload):
        Signature.of(send).decode(JSON, data)


def test_reordering_and_new_defaults_change_nothing() -> None:
    """Stored arguments fit a function whose parameters moved or gained a default."""

    def later(subject: str = "new", to: str = "", urgent: bool = False) -> None: ...

    data = Signature.of(send).encode(JSON, ("ada", "hello"), {})
    assert Signature.of(later).decode(JSON, data) == ([], {"to": "ada", "subject": "hello"})


def test_unhashable_defaults_and_containers_of_contexts() -> None:
    """A list as default is no obstacle, and a list of contexts is no context."""

    def f(a: list[int] = [], /, *rest: int) -> None: ...  # noqa: B006
    def g(many: list[Context]) -> None: ...

    assert roundtrip(f, [1], 2) == ([[1], 2], {})
    assert roundtrip(f) == ([[]], {})
    with pytest.raises(ConfigurationError, match="'many'"):
        Signature.of(g, context_types=(Context,))


def test_no_arguments() -> None:
    """A function without parameters stores an empty object and refuses arguments."""

    def f() -> None: ...

    assert Signature.of(f).encode(JSON, (), {}) == b"{}"
    assert roundtrip(f) == ([], {})
    with pytest.raises(SignatureMismatch, match="takes at most 0"):
        roundtrip(f, 1)
    with pytest.raises(SignatureMismatch, match="unknown field"):
        Signature.of(f).decode(JSON, b'{"x":1}')


def test_context_parameters_are_left_out() -> None:
    """A parameter of a context type is neither stored nor accepted; its name is known."""

    def f(ctx: Context, to: str, other: Context | None = None, skipped: Custom | None = None) -> None: ...

    signature = Signature.of(f, context_types=(Context,), skip={"skipped"})
    assert signature.injected == {"ctx": Context, "other": Context}
    assert signature.decode(JSON, signature.encode(JSON, ("ada",), {})) == ([], {"to": "ada"})
    with pytest.raises(SignatureMismatch, match="unexpected argument 'ctx'"):
        signature.encode(JSON, ("ada",), {"ctx": 1})
    assert Signature.of(send, context_types=(Context,)).injected == {}


def test_context_parameters_must_be_passable_by_keyword() -> None:
    """A context in front of *args or positional-only cannot be passed, so registration refuses it."""

    def rest(ctx: Context, *args: int) -> None: ...
    def only(ctx: Context, /) -> None: ...
    def fine(*args: int, ctx: Context) -> None: ...

    for function in (rest, only):
        with pytest.raises(ConfigurationError, match=r"'ctx'.*keyword-only"):
            Signature.of(function, context_types=(Context,))
    assert Signature.of(fine, context_types=(Context,)).injected == {"ctx": Context}


@pytest.mark.parametrize(
    "annotation",
    [
        complex,
        Item | Other,
        Custom,
        list[complex],
        dict[str, Custom | None],
        Callable[[], None],
        msgspec.Raw,
    ],
)
def test_types_that_cannot_be_carried_are_refused_at_registration(annotation: Any) -> None:
    """Registration names the function and the parameter."""

    def f(good: int, bad) -> None: ...  # type: ignore[no-untyped-def]

    f.__annotations__["bad"] = annotation
    with pytest.raises(ConfigurationError, match=r"f\(\): parameter 'bad' cannot be stored"):
        Signature.of(f)


def test_a_function_without_known_parameters_is_refused() -> None:
    """Of some functions written in C nobody knows the parameters; the message says what to do."""
    with pytest.raises(ConfigurationError, match="wrap it in a function of your own"):
        Signature.of(max)


def test_annotations_that_cannot_be_resolved_are_refused() -> None:
    """An unknown name in an annotation is a clear error at registration."""

    def f(x: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ConfigurationError, match=r"'Nowhere' is not defined.*module level"):
        Signature.of(f)


def test_odd_parameter_names_and_constraints() -> None:
    """Names that mean something to the library are only names, and constraints hold."""

    def f(self: int, __post_init__: int, count: Annotated[int, msgspec.Meta(gt=0)] = 1) -> None: ...

    assert roundtrip(f, 1, 2)[1] == {"self": 1, "__post_init__": 2}
    with pytest.raises(SignatureMismatch, match=r"\$\.count"):
        roundtrip(f, 1, 2, count=0)


def test_extra_keywords_that_became_parameters_are_a_mismatch() -> None:
    """A stored extra keyword never overrides a parameter of today's function silently."""

    def before(**extra: int) -> None: ...
    def after(n: int = 0, **extra: int) -> None: ...

    data = Signature.of(before).encode(JSON, (), {"n": 1})
    with pytest.raises(SignatureMismatch, match=r"now names \['n'\]"):
        Signature.of(after).decode(JSON, data)


def test_bytes_codec_needs_exactly_one_parameter() -> None:
    """Encoded bytes are the one argument, unchanged."""

    def f(body: bytes) -> None: ...
    def only(body: bytes, /) -> None: ...

    codec = BytesCodec()
    assert Signature.of(f).encode(codec, (b"{}",), {}) == b"{}"
    assert Signature.of(f).decode(codec, b"{}") == ([], {"body": b"{}"})
    assert Signature.of(only).decode(codec, b"x") == ([b"x"], {})
    Signature.of(f).check_codec(codec)
    with pytest.raises(ConfigurationError, match="exactly one stored parameter"):
        Signature.of(send).check_codec(codec)


def test_codecs_are_checked_at_registration() -> None:
    """A codec that carries the parameters passes; a custom one may return plain data."""

    class Plain(JsonCodec):
        name = "plain"

        def decode(self, data: bytes, type_: object) -> object:
            return super().decode(data, Any)

    signature = Signature.of(send)
    signature.check_codec(JSON)
    assert signature.decode(Plain(), b'{"to":"a"}') == ([], {"to": "a"})
    with pytest.raises(SignatureMismatch, match="got `int`"):
        signature.decode(Plain(), b'{"to":1}')


def test_results_follow_the_return_annotation() -> None:
    """A result comes back as annotated; one that does not fit is undecodable."""

    def typed() -> list[Item]: ...  # type: ignore[empty-body]
    def odd() -> complex: ...  # type: ignore[empty-body]
    def bare():  # type: ignore[no-untyped-def]
        return None

    item = Item(datetime(2030, 1, 1))
    signature = Signature.of(typed)
    assert signature.decode_result(JSON, signature.encode_result(JSON, [item])) == [item]
    with pytest.raises(UndecodablePayload, match="does not fit its annotation"):
        signature.decode_result(JSON, b"5")
    with pytest.raises(InvalidPayload):
        Signature.of(odd).encode_result(JSON, 1j)
    assert Signature.of(odd).decode_result(JSON, b"5") == 5
    assert Signature.of(bare).returns is Any


def test_pydantic_parameters() -> None:
    """Pydantic models are stored by their dump and validated when read."""
    pydantic = pytest.importorskip("pydantic")
    User: Any = pydantic.create_model("User", name=(str, ...))

    def f(user, more) -> None: ...  # type: ignore[no-untyped-def]

    f.__annotations__ |= {"user": User, "more": list[User]}
    user = User(name="Ada")
    assert roundtrip(f, user, [user])[1] == {"user": user, "more": [user]}
    with pytest.raises(SignatureMismatch, match="user"):
        roundtrip(f, 5, [])
