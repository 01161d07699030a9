"""The configs that come with the packages, each known by its bare name: `--config tinystories` works in any folder."""

from pathlib import Path

from lmcore.errors import UserError

__all__ = ["config_path", "names"]

PLACES = tuple(Path(__file__).parents[up] / "configs" for up in (1, 2))
"""Where they lie: in an installed wheel, in the repository."""


def names() -> list[str]:
    """Bare names of what describes a run, in alphabetical order; `ablations` describes several."""
    return sorted({path.stem for place in PLACES for path in place.glob("*.yaml")} - {"ablations"})


def config_path(named: str, option: str) -> Path:
    """The file that is meant: a path, or the bare name of a config that comes with the packages.

    Args:
        named: as it was typed. What exists under this path comes first.
        option: what to call it in an error.

    Raises:
        UserError: there is no such file.
    """
    path = Path(named)
    if path.exists() and not path.is_dir():
        return path
    shipped = [place / f"{named}.yaml" for place in PLACES] if named == path.name else []
    if found := next((file for file in shipped if file.exists()), None):
        return found
    if path.is_dir():
        raise UserError(f"{option}: found the folder {named!r}, expected a YAML file")
    raise UserError(
        f"{option}: found no file {named!r}, expected the path of a YAML file or one of {', '.join(names())}"
    )
