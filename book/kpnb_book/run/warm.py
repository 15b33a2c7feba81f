"""Kernels that begin with their packages imported: forked from one process that has imported them
once.

A book starts more than twenty kernels. When its networks are stored, most of what each of them does
is to import PyTorch, pandas and matplotlib. Here one process does so, and forks to become the
kernel of each notebook, which is a process of its own, with its own namespace, folder and
environment. Only Linux can fork such a process safely; elsewhere kernels start as always.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from kpnb_book.run.notebooks import KERNEL

ADDRESS = "KPNB_WARM"  # environment variable with the path of the socket
IMPORTED = ("IPython.core.interactiveshell", "kpnb_book.figures.plots", "torchvision.models", "zmq")
IMPORTED += ("kpnb_book.studies.clouds", "kpnb_book.studies.images", "kpnb_book.studies.text")


@contextmanager
def warm() -> Iterator[None]:
    """The kernels that this process and its children start meanwhile come from a warm one."""
    if sys.platform != "linux":
        yield
        return
    # What is imported looks at these only then, so they cannot wait for the kernel.
    environment = KERNEL | os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    with (
        tempfile.TemporaryDirectory(prefix="kpnb-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        address = str(Path(folder, "warm"))
        listener.bind(address)
        listener.listen()
        command = [sys.executable, "-m", __name__, str(listener.fileno())]
        # The end of its input, when this process ends in whatever way, ends the server, and that
        # ends its kernels.
        options = {"stdin": subprocess.PIPE, "pass_fds": [listener.fileno()], "env": environment}
        with subprocess.Popen(command, **options) as server:
            listener.close()  # so that nobody waits for a server that has ended
            theirs = {ADDRESS: address, "JUPYTER_DEFAULT_PROVISIONER_NAME": "kpnb-warm"}
            ours = KernelProvisionerFactory.instance()  # which may have read the variable already
            before, ours.default_provisioner_name = ours.default_provisioner_name, "kpnb-warm"
            try:
                with patch.dict(os.environ, theirs):
                    yield
            finally:
                ours.default_provisioner_name = before
                server.kill()


class Forked:
    """As much of a ``subprocess.Popen`` as Jupyter needs of a kernel. The kernel's end closes the
    ``line`` to it.
    """

    stdin = stdout = stderr = None

    def __init__(self, command: list[str], env: dict[str, str], cwd: str) -> None:
        with ExitStack() as failed:
            self.line = failed.enter_context(socket.socket(socket.AF_UNIX))
            self.line.connect(os.environ[ADDRESS])
            self.line.sendall(
                json.dumps({"command": command, "env": env, "cwd": cwd}).encode() + b"\n"
            )
            self.pid = int(self.line.recv(32))
            failed.pop_all()

    def poll(self, seconds: float | None = 0) -> int | None:
        if self.line.fileno() >= 0 and select.select([self.line], [], [], seconds)[0]:
            self.line.close()
        return 0 if self.line.fileno() < 0 else None

    def wait(self) -> int | None:
        return self.poll(None)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Provisioner(LocalProvisioner):
    """Forks kernels where Jupyter would start them."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        self.cwd = options.get("cwd") or os.getcwd()
        self.process = Forked(cmd, options["env"], str(self.cwd))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def serve(listener: socket.socket) -> None:
    """Import, then fork a kernel for every connection, until standard input ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts a build means its kernels
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels that end are forgotten
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        line, _ = listener.accept()
        wanted = json.loads(line.makefile().readline())
        if kernel := os.fork():
            line.sendall(f"{kernel}\n".encode())
            line.close()
        else:
            listener.close()
            become(**wanted)  # never returns; ``line`` stays open until then


def become(command: list[str], env: dict[str, str], cwd: str) -> None:
    """Be the kernel that ``command`` would start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(cwd)
    np.random.seed()  # noqa: NPY002 - or all kernels would draw the same
    torch.seed()
    os.environ.clear()
    os.environ.update(
        env | {"JPY_PARENT_PID": str(os.getppid())}
    )  # a kernel ends when its parent does
    sys.argv = command[command.index("ipykernel_launcher") :]
    from ipykernel.kernelapp import launch_new_instance  # only now: it reads the environment

    sys.exit(launch_new_instance())


if __name__ == "__main__":
    del sys.path[0]  # the folder this was started in: a kernel has its own
    serve(socket.socket(fileno=int(sys.argv[1])))
