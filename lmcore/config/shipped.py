"""The configs that come with the packages, each known by its bare name: `--config tinystories` works in any folder."""

from pathlib import Path

from lmcore.errors import UserError

__all__ = ["config_path", "names"]

PLACES = tuple(Path(__file__).parents[up] / "configs" for up in (1, 2))
"""Folders that may hold them: in an installed wheel, and in the repository."""


def names() -> list[str]:
    """Return the bare names of the shipped configs in alphabetical order; `ablations`, a plan of runs, is not one."""
    return sorted({path.stem for place in PLACES for path in place.glob("*.yaml")} - {"ablations"})


def config_path(named: str, option: str) -> Path:
    """Return the config file for a path or for the bare name of a shipped config.

    Args:
        named: the path or bare name, as typed. An existing file with this path takes precedence.
        option: name of the option in an error message.

    Raises:
        UserError: there is no such file.
    """
    path = Path(named)
    if path.exists() and not path.is_dir():
        return path
    shipped = [place / f"{named}.yaml" for place in PLACES] if named == path.name else []
    if existing := next((file for file in shipped if file.exists()), None):
        return existing
    if path.is_dir():
        raise UserError(f"{option}: found the folder {named!r}, expected a YAML file")
    raise UserError(
        f"{option}: found no file {named!r}, expected the path of a YAML file or one of {', '.join(names())}"
    )
