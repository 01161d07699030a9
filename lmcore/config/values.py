"""What the groups of the config share: checks of their values, and numbers derived from other fields.

A value that a group fills in is a `Derived` number: it is derived again whenever its group is replaced, and is saved as
unset, so that a default stays a default until somebody sets the field.
"""

from lmcore.errors import UserError, shown

__all__ = ["Derived", "at_least", "explicit", "require"]


def require(group: str, name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise UserError(f"{group}.{name}: found {shown(value)}, expected {expected}")


class Derived(int):
    """An integer that nobody set: it is computed from other fields, and again whenever they change."""


def explicit(value: int) -> int:
    """Return the value that somebody set, or 0, which stands for a derived value."""
    return 0 if isinstance(value, Derived) else value


def at_least(group: str, config: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(group, name, value, value >= minimum, f"at least {minimum}")
