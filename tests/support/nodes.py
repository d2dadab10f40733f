"""Two nodes on one machine: each has a network and a disk of its own, and a cable connects them."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.support.shell import ENVIRONMENT

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Both nodes see their own disk as `disk`, and neither sees the other's. They wait at `read` for the cable.
BOOT = """
mount --bind "disk-$1" disk && mount -t tmpfs none disk-0 && mount -t tmpfs none disk-1 && ip link set lo up || exit
echo ready && read -r _ && ip address add "$2/24" dev cable && ip link set cable up && cd disk || exit
shift 2
"$@" >&2
"""


class Node:
    """A host that runs one command, as root of namespaces of its own.

    Args:
        folder: with ``disk-0``, ``disk-1`` and an empty ``disk``.
        rank: of the node, 0 or 1.
        command: runs on the disk of the node; its output goes to ``node-<rank>.log`` in the folder.
    """

    def __init__(self, folder: Path, rank: int, command: Sequence[str]) -> None:
        self._log = folder / f"node-{rank}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", *NAMESPACES, "sh", "-c", BOOT, "sh", str(rank), ADDRESSES[rank], *command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "cable", "PYTHONPATH": str(ROOT)},
            )

    @property
    def output(self) -> str:
        """What the command has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_for_cable(self) -> None:
        """Return once the network exists."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", self.output

    def start(self) -> None:
        """Run the command; the cable must be connected."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def unplug(self) -> None:
        """Take the cable off, so that the other node gets no answer, not even that a connection was closed."""
        inside = ["nsenter", "--target", str(self.process.pid), "--net"]
        subprocess.run([*inside, "ip", "link", "set", "cable", "down"], check=True)

    def kill(self) -> None:
        """End all processes of the node with SIGKILL."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def running_nodes(folder: Path, program: Path, *arguments: str, ranks_per_node: int = 1) -> Iterator[tuple[Node, Node]]:
    """Run a program with ``torchrun`` on two nodes, and kill what is left of them at the end.

    Args:
        folder: with ``disk-0`` and ``disk-1``; a program finds its own as ``disk`` in this folder.
        program: of Python.
        arguments: of the program.
        ranks_per_node: processes per node.
    """
    (folder / "disk").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--nproc-per-node={ranks_per_node}"]
    address = [f"--master-addr={ADDRESSES[0]}", "--master-port=29500"]
    first, second = nodes = tuple(
        Node(folder, rank, [*torchrun, *address, f"--node-rank={rank}", str(program), *arguments]) for rank in range(2)
    )
    try:
        for node in nodes:
            node.wait_for_cable()
        ends = [["cable", "netns", str(node.process.pid)] for node in nodes]
        subprocess.run(["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]], check=True)
        for node in nodes:
            node.start()
        yield first, second
    finally:
        for node in nodes:
            node.kill()


@cache
def reason_against_nodes() -> str:
    """Say why this machine cannot run two nodes; ``""`` if it can."""
    cable = ["sh", "-c", "mount -t tmpfs none /mnt && ip link add cable type veth peer name other"]
    try:
        process = subprocess.run(["unshare", *NAMESPACES, *cable], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"two nodes need namespaces of Linux: {error}"
    return f"two nodes need namespaces, which are not permitted here: {process.stderr.strip()}" * bool(
        process.returncode
    )
