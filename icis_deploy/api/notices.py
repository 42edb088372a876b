"""Tell Python callers what there is reason to doubt."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from icis_deploy.errors import ICISDeployWarning


def tell(messages: Iterable[str]) -> None:
    """Warn whoever called the public function that calls this, once of each message.

    Args:
        messages: In sentences of the library, as those of errors.
    """
    for message in dict.fromkeys(messages):
        warnings.warn(message, ICISDeployWarning, stacklevel=3)
