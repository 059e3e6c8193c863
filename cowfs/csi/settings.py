"""How the driver was started, and what the disk says as an answer: for the services."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from grpc import StatusCode

from cowfs.csi import configuration
from cowfs.csi.calls import Refused
from cowfs.csi.configuration import Configuration
from cowfs.system.errors import CowfsError

Made = TypeVar("Made")


class Settings(NamedTuple):
    """driver: its name. kubelet: the directory below which targets lie. configuration: a path."""

    driver: str
    node: str
    kubelet: str
    configuration: str

    @property
    def topology(self) -> dict[str, str]:
        """Where volumes of this node can be had."""
        return {f"topology.{self.driver}/node": self.node}

    def read(self) -> Configuration:
        """The configuration as it is now. Refused."""
        return configuration.read(self.configuration)


def translated(work: Callable[[], Made]) -> Made:
    """What it returns. Refused: what the disk or cowfs say."""
    try:
        return work()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = "no space is left on the disk of the driver's state"
            raise Refused(StatusCode.RESOURCE_EXHAUSTED, sentence) from None
        named = f" ({error.filename!r})" if error.filename else ""
        sentence = f"the node cannot do it: {error.strerror}{named}"
        raise Refused(StatusCode.INTERNAL, sentence) from None
    except CowfsError as error:
        raise Refused(StatusCode.INTERNAL, str(error)) from None
