"""Who waits for a place gets it in turn; and the command without its packages."""

from __future__ import annotations

import subprocess
import sys
import threading

from cowfs.csi.volumes import Queue


def test_places_are_handed_on_in_the_order_of_coming() -> None:
    queue, order = Queue(1), list[int]()
    threads = []

    def wait(number: int) -> None:
        with queue.place():
            order.append(number)

    with queue.place():
        for number in range(8):
            thread = threading.Thread(target=wait, args=(number,))
            thread.start()
            threads.append(thread)
            while len(queue._waiting) <= number:
                threading.Event().wait(0.001)
        assert not order
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    with queue.place():
        pass


def test_command_says_which_packages_it_needs() -> None:
    script = (
        "import sys; sys.modules['grpc'] = None\n"
        "from cowfs.commands.cli import main\n"
        "sys.exit(main(['csi']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "grpcio and protobuf" in line
    assert sys.executable in line
