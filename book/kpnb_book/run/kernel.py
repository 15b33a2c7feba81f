"""The kernel of a notebook that is executed without a browser."""

import os
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from traitlets import Dict, Unicode

# What our kernels get unless their user has set it.
DEFAULTS = {
    # Threads that spin while they wait slow a notebook down many times on a shared machine.
    "GOMP_SPINCOUNT": "10000",
    # A debugger that no one uses may print a warning.
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    # glibc would give each layer's output back to the system, a third of an entropy's time.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}


def environment() -> dict[str, str]:
    """This process's environment with ``DEFAULTS``; what a user has set stays.

    A worker that ``dask worker`` started has thresholds of Dask's own choice, which no user has
    set: ours replace them.
    """
    import dask
    import distributed  # noqa: F401 - for its part of the configuration

    of_dask = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    env = dict(os.environ)
    for name, value in DEFAULTS.items():
        if name not in env or env[name] == str(of_dask.get(name)):
            env[name] = value
    return env


class Kernel(AsyncKernelManager):
    """Starts a kernel with variables of its own and its bare output in a file; ends it at once.

    A kernel's bare output is what comes from outside its cells: of C libraries, of the kernel
    itself, of a crash.
    """

    variables = Dict(help="environment variables, besides those of this process").tag(config=True)
    log_file = Unicode(help="where the bare output goes").tag(config=True)

    async def start_kernel(self, **options: Any) -> None:
        options["env"] = environment() | self.variables
        with open(self.log_file, "ab") as log:
            await super().start_kernel(**options, stdout=log, stderr=log)

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Kill the kernel. Jupyter would interrupt it first, which a kernel that still tidies up
        after its last answer calls an error; all that matters is stored by then.
        """
        if self.has_kernel:
            self.shutting_down = True
            await self.provisioner.kill()
            await self.provisioner.wait()
        await self.cleanup_resources()
