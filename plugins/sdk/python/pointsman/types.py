"""The data types of the contract; see wit/types.wit."""

from wit_world.imports.types import *  # noqa: F401,F403
