"""The embedded stories: the corpus of `configs/quickstart.yaml`, generated from a seeded grammar."""

from lmcore.data.stories.generator import EDITION, stories

__all__ = ["EDITION", "stories"]
