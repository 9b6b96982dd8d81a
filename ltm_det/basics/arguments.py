"""Arguments of what configs build, checked before anything is made of them.

    @checked(depth=whole(1), drop_rate=number(0, most=1), with_cp=flag)
    def __init__(self, depth: int = 12, drop_rate: float = 0.0, with_cp: bool = False) -> None:

A rule takes an argument's name and value, and raises InputError, which says what is allowed.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, wraps
from numbers import Integral, Real
from typing import Any, TypeVar

from ltm_det.basics.errors import InputError

Rule = Callable[[str, Any], None]
LARGEST = 2**31 - 1  # of whole numbers
LARGEST_NUMBER = 3e38  # of float32, in which all is computed
Init = TypeVar("Init", bound=Callable[..., None])


def whole(least: int = 0, most: int | None = None) -> Rule:
    """A whole number: no bool, no float, no text."""
    span = f"from {least} on" if most is None else f"from {least} to {most}"

    def rule(name: str, value: Any) -> None:
        good = isinstance(value, Integral) and not isinstance(value, bool)
        if not good or not least <= value <= (LARGEST if most is None else most):
            raise InputError(f"{name} must be a whole number {span}, got {value!r}")

    return rule


def number(
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Rule:
    """A finite number; no bool, no text."""
    if most is not None or below is not None:
        low = f"({above}" if least is None else f"[{least}"
        text = f"must lie in {low}, {most}]" if below is None else f"must lie in {low}, {below})"
    else:
        text = "must be finite" if least is None else f"must be finite and from {least} on"
        text = text if above is None else f"must be finite and above {above}"

    def rule(name: str, value: Any) -> None:
        good = is_number(value) and abs(value) <= LARGEST_NUMBER  # not so for NaN
        good = good and (least is None or value >= least) and (above is None or value > above)
        if not (good and (most is None or value <= most) and (below is None or value < below)):
            kind = "" if is_number(value) else ", which is no number"
            raise InputError(f"{name} {text}, got {value!r}{kind}")

    return rule


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def flag(name: str, value: Any) -> None:
    """True or False: no number, and no text, which would count as true."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r}")


def text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InputError(f"{name} must be a string, got {value!r}")


def choice(allowed: Collection[str]) -> Rule:
    """One of some names."""

    def rule(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise InputError(f"unknown {name} {value!r}: choose one of {sorted(allowed)}")

    return rule


def optional(other: Rule) -> Rule:
    """None, or what the other rule allows."""

    def rule(name: str, value: Any) -> None:
        if value is not None:
            other(name, value)

    return rule


def many(each: Rule, least: int = 1) -> Rule:
    """A list or tuple of what a rule allows, of at least so many entries."""

    def rule(name: str, value: Any) -> None:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise InputError(f"{name} must be a list, got {value!r}")
        if len(value) < least:
            raise InputError(f"{name} must have {least} or more entries, got {value!r}")
        for i, entry in enumerate(value):
            each(f"{name}[{i}]", entry)

    return rule


def size(name: str, value: Any) -> None:
    """Pixels: of both sides, or a list of one for both, or of height and width."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return whole(1)(name, value)
    if len(value) not in (1, 2):
        raise InputError(f"{name} must be a side, or (height, width), got {value!r}")
    return many(whole(1))(name, value)


def check_names(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InputError where a name is none of the known ones; it tells the nearest."""
    known = sorted(known)
    for name in given:
        if name not in known:
            raise InputError(f"{owner} has no argument {name!r}: {nearest(name, known)}")


def named(
    owner: str,
    given: str | Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
    rules: Mapping[str, Rule],
) -> dict[str, Any]:
    """The sizes of a published model by its name, or those of a dict that gives each one.

    Args:
        owner: Of the argument, with its name.
        given: The argument.
        known: Sizes by names of models.
        rules: Of each size.

    Raises:
        InputError: There is no such model, or a size is unknown, missing or against its rule.
    """
    if isinstance(given, str) and given in known:
        return dict(known[given])
    if not isinstance(given, Mapping):
        raise InputError(f"{owner}={given!r}: choose one of {[*known]}, or give a dict of sizes")
    check_names(owner, given, rules)
    if missing := [name for name in rules if name not in given]:
        raise InputError(f"{owner}={dict(given)} lacks {missing}")
    check(owner, given, rules)
    return dict(given)


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the most similar known ones, or where none is, all."""
    known = sorted(known)
    lower = {other.lower(): other for other in known}
    near = [lower[n] for n in get_close_matches(str(name).lower(), lower, n=3, cutoff=0.6)]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are {', '.join(known)}" if known else "there are none"


@cache
def arguments_of(cls: type) -> dict[str, Any]:
    """Names and defaults of a class's arguments, those that it hands on to its bases included."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is None or base is object:
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for one in parameters:
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
                found.setdefault(one.name, one.default)
        if all(one.kind != one.VAR_KEYWORD for one in parameters):
            break
    return found


def check(owner: str, values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Applies rules to the values of the same names; messages start with the owner's name."""
    try:
        for name, rule in rules.items():
            if name in values:
                rule(name, values[name])
    except InputError as error:
        raise InputError(f"{owner}: {error}") from None


def checked(**rules: Rule) -> Callable[[Init], Init]:
    """For ``__init__``: checks arguments' names, and by rules their values, before it runs.

    Raises:
        InputError: An argument is unknown, missing, or not what its rule allows.
    """

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)

        @wraps(init)
        def checking(self: Any, *args: Any, **kwargs: Any) -> None:
            owner = type(self).__name__
            check_names(owner, kwargs, arguments_of(type(self)))
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:  # one is missing, or given twice
                raise InputError(f"{owner}: {error}") from None
            bound.apply_defaults()
            check(owner, bound.arguments | kwargs, rules)
            init(self, *args, **kwargs)

        return checking  # type: ignore[return-value]

    return decorate
