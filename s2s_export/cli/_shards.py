"""--shard I/N, for work that is split over machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InvalidOption

if TYPE_CHECKING:
    from ..runtime.sharding import Shard

F = TypeVar("F", bound=Callable[..., Any])


class ShardType(click.ParamType):
    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        from ..runtime.sharding import Shard

        if isinstance(value, Shard):
            return value
        try:
            return Shard.of(str(value))
        except InvalidOption as error:
            self.fail(str(error), param, ctx)


def shard_option(command: F) -> F:
    """--shard."""
    text = (
        "Do only part I (from 0) of N of the work, and write it to a file of its own: OUT-0000I-of-0000N. The parts in "
        "the order of their names are the whole output."
    )
    return click.option("--shard", type=ShardType(), help=text)(command)
