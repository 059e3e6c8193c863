"""Calls and answers: handlers as services of gRPC, and refusals as its codes.

A handler gets the request and answers with a message, or raises `Refused`. Which code is right the
specification says in the tables of each call; what the kubelet does with it is another matter:
after ABORTED, UNAVAILABLE, RESOURCE_EXHAUSTED, CANCELLED and DEADLINE_EXCEEDED it asks again, and
after any other it takes the volume for not mounted and never unpublishes it. So what answers with
another has taken back what it did.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc import StatusCode

from cowfs.csi import messages

log = logging.getLogger(__name__)

Handler = Callable[[Any], Any]


class Refused(Exception):  # noqa: N818 -- the name says what the caller is told
    """The answer to a call that is not done: a code, and a sentence for whoever asked."""

    def __init__(self, code: StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def invalid(sentence: str) -> Refused:
    """The call itself is wrong."""
    return Refused(StatusCode.INVALID_ARGUMENT, sentence)


def not_found(sentence: str) -> Refused:
    """What it is about is not there."""
    return Refused(StatusCode.NOT_FOUND, sentence)


def precondition(sentence: str) -> Refused:
    """What it is about is in another state."""
    return Refused(StatusCode.FAILED_PRECONDITION, sentence)


def again(sentence: str) -> Refused:
    """Somebody else has it just now."""
    return Refused(StatusCode.ABORTED, sentence)


def service(
    name: str, methods: Mapping[str, tuple[str, str, Handler]], package: str = messages.CSI
) -> Any:
    """A service. methods: the types of request and answer, and the handler, by a method's name."""
    return grpc.method_handlers_generic_handler(
        f"{package}.{name}",
        {
            method: grpc.unary_unary_rpc_method_handler(
                _answering(method, handler),
                request_deserializer=messages.message(request, package).FromString,
                response_serializer=messages.message(answer, package).SerializeToString,
            )
            for method, (request, answer, handler) in methods.items()
        },
    )


def csi_service(name: str, handlers: Mapping[str, Handler]) -> Any:
    """The same where types are called as the method is, which CSI does throughout."""
    return service(
        name,
        {
            method: (f"{method}Request", f"{method}Response", handlers[method])
            for method in handlers
        },
    )


def _answering(method: str, handler: Handler) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: Any) -> Any:
        started = time.monotonic()
        code, sentence, made = StatusCode.OK, "", None
        try:
            made = handler(request)
        except Refused as refused:
            code, sentence = refused.code, _one_line(str(refused))
        except Exception as error:
            log.exception("%s: unexpected", method)
            code = StatusCode.INTERNAL
            sentence = _one_line(f"unexpected {type(error).__name__}: {error}; this is a bug")
        # Requests may hold secrets: of them nothing is said but the volume's name.
        about = getattr(request, "volume_id", "") or getattr(request, "name", "")
        took = f"{1000 * (time.monotonic() - started):.0f} ms"
        level = logging.DEBUG if method == "Probe" else logging.INFO
        said = f": {sentence}" if sentence else ""
        log.log(level, "%s %s: %s, %s%s", method, _one_line(about), code.name, took, said)
        if code is not StatusCode.OK:
            context.abort(code, sentence)
        return made

    return answer


def _one_line(text: str) -> str:
    """What others have chosen, with nothing in it that a log or a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)[:1000]
