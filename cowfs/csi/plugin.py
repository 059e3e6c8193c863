"""The driver as a process: sockets, threads, start and end.

It holds nothing that a mount needs. Keeper and daemon of each volume are processes of their own
(launch.py), with a scope of their own where systemd is the first process; killed at any moment and
started again, it goes on with the records.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from cowfs.csi import identity, registration
from cowfs.csi.controller import Controller
from cowfs.csi.node import Node
from cowfs.csi.reconcile import reconcile
from cowfs.csi.records import Records
from cowfs.csi.settings import Settings
from cowfs.csi.volumes import Volumes
from cowfs.mount import preflight
from cowfs.system.errors import SystemFailure, UsageError

log = logging.getLogger(__name__)

# Calls that wait have a thread each: more than there can be pods on a node.
_THREADS = 256
_RECONCILE_SECONDS = 60.0
# For calls that are under way at the end. What they leave half done has its records.
_GRACE_SECONDS = 5.0
_SOCKET_PATH_MAX = 107  # bytes, unix(7)
_DRIVER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")


def run(
    *,
    endpoint: str,
    kubelet: str,
    state: str,
    configuration: str,
    driver: str,
    node: str,
    at_once: int,
    register: bool,
) -> None:
    """Serve until SIGTERM or SIGINT. CowfsError."""
    preflight.require_privilege()
    if not _DRIVER.fullmatch(driver):
        raise UsageError(f"{driver!r} is no name of a driver: write one as of a domain, csi.cowfs")
    node = node or socket.gethostname()
    if len(node.encode()) > 192:
        raise UsageError("the node's name is longer than 192 bytes: say another with --node")
    for path, option in ((endpoint, "endpoint"), (kubelet, "kubelet"), (state, "state")):
        if not path.startswith("/") or os.path.normpath(path) != path.rstrip("/"):
            raise UsageError(f"--{option}={path}: name a plain absolute path")
    _show_log()
    settings = Settings(driver, node, kubelet.rstrip("/"), configuration)
    try:
        records = Records(state)
    except BlockingIOError:
        raise UsageError(
            f"the state directory {state} is in use by another driver: name another with --state"
        ) from None
    except OSError as error:
        raise SystemFailure(f"the state directory {state}: {error.strerror}") from None
    volumes = Volumes(records, at_once=at_once)
    reconcile(records, volumes, settings.kubelet)

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    services = [
        identity.service(driver),
        Node(settings, records, volumes).service(),
        Controller(settings, records, volumes).service(),
    ]
    servers = [_serve(services, endpoint, "--endpoint")]
    if register:
        place = os.path.join(kubelet, "plugins_registry", f"{driver}-reg.sock")
        servers.append(_serve([registration.service(driver, endpoint)], place, "--kubelet"))
    log.info("%s serves %s on node %s", driver, endpoint, node)
    while not ended.wait(_RECONCILE_SECONDS):
        reconcile(records, volumes, settings.kubelet)
    stopping = [server.stop(_GRACE_SECONDS) for server in servers]
    for stopped in stopping:
        stopped.wait()
    log.info("ended; what is mounted stays")
    sys.stderr.flush()
    # Threads that wait for a mount or an unmount have nothing that must be finished.
    os._exit(0)


def _serve(services: list[Any], path: str, option: str) -> Any:
    """A server on a Unix socket that only root may connect to. SystemFailure."""
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise UsageError(f"{path} is too long for a socket: say another with {option}")
    try:
        os.makedirs(os.path.dirname(path), 0o750, exist_ok=True)
        # Of a driver that was killed: we have the state directory's lock.
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SystemFailure(f"cannot make the socket {path}: {error.strerror}") from None
    server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="call"))
    server.add_generic_rpc_handlers(services)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise SystemFailure(f"cannot make the socket {path}: {error}") from None
    finally:
        os.umask(mask)
    server.start()
    return server


def _show_log() -> None:
    """A line for each call and each trouble, on stderr."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("cowfs")
    ours.handlers = [lines]
    ours.setLevel(logging.INFO)
