"""Types of options and arguments: those that name what was probably meant, and numbers that are some."""

from __future__ import annotations

import math
import os
from typing import Any

import click

from icis_deploy.common.closest import did_you_mean, did_you_mean_path


class Choice(click.Choice):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.2 on
    """One of several words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word, or name the one that is most like it."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            meant = did_you_mean([str(value)], map(str, self.choices))
            raise click.BadParameter(f"{error.message} {meant}".rstrip(), ctx, param) from None


class NewPath(click.Path):
    """The path of something that is written. An empty text would be the folder that the command runs in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, if it is not empty, as a shell's variable may be that was never set."""
        if value == "":
            raise click.BadParameter("The path is empty. Name a path; where a variable says it, set that.", ctx, param)
        return super().convert(value, param, ctx)


class ExistingPath(click.Path):
    """The path of something that is there.

    Args:
        expected: What it should be, as a sentence, for the error of something else.
        settings: As of `click.Path`, but for `exists`.
    """

    def __init__(self, *, expected: str = "", **settings: Any) -> None:
        super().__init__(exists=True, **settings)
        self.expected = expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or name the one in the same folder that is most like it."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            meant = "" if os.path.lexists(value) else did_you_mean_path(value)
            message = " ".join(part for part in (error.message, self.expected, meant) if part).rstrip()
            raise click.BadParameter(message, ctx, param) from None


class Number(click.FloatRange):
    """A number in a range. click's own takes NaN, which no comparison refuses, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, if it is finite and in the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            raise click.BadParameter(f"{number} is not in the range {self._describe_range()}.", ctx, param)
        return number


class Seed(click.IntRange):
    """A seed: a whole number of up to 63 bits, which is more than anybody has to be told beforehand."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, if torch takes it as a seed."""
        number = super().convert(value, param, ctx)
        if number >= 1 << 63:
            raise click.BadParameter(f"{number} is no seed: at most 2^63 - 1 is taken.", ctx, param)
        return number
