"""Several Ray nodes on one machine: each is a `ray start --block` with a loopback address of its own, ended by its process id.

`ray stop` would end every Ray of the machine.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.deadlines import deadline, wait_until

RAY = str(Path(sys.executable).with_name("ray"))


class Nodes:
    """A cluster with a token of its own. `with Nodes(cpus=4) as nodes: nodes.add("b", cpus=2)`. Node k has the address 127.0.0.(k+2).

    address: of the cluster, for RAY_ADDRESS. dashboard: URL of the job API. environment: of a client that may use the cluster.
    """

    def __init__(self, *, cpus: int, store_mib: int = 200, **options: float | str):
        self._directory = tempfile.mkdtemp(prefix="rn-")  # short, because a socket's path may have 107 bytes
        self.environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.environment.pop("RAY_ADDRESS", None)
        self._processes: dict[str, subprocess.Popen] = {}
        self._store_mib = store_mib
        port, dashboard_port = _free_port(), _free_port()
        self.address, self.dashboard = f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard_port}"
        head = ["--head", f"--port={port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
        self._start("head", [*head, f"--temp-dir={self._directory}"], cpus, options)

    def add(self, name: str, *, cpus: int, **options: float | str) -> None:
        """options: of `ray start`, such as num_gpus=2."""
        self._start(name, [f"--address={self.address}"], cpus, options)

    def _start(self, name: str, where: list[str], cpus: int, options: dict) -> None:
        # Any other Ray of the machine may hold the default port of the agent; a head without agent accepts no jobs, and does not say so.
        options = {"dashboard_agent_listen_port": 0} | options
        command = [RAY, "start", *where, "--block", f"--node-ip-address=127.0.0.{len(self._processes) + 2}", f"--num-cpus={cpus}"]
        command += [f"--resources={json.dumps({f'node_{name}': 1})}", f"--object-store-memory={self._store_mib * 2**20}"]
        command += ["--disable-usage-stats", *(f"--{key.replace('_', '-')}={value}" for key, value in options.items())]
        for _ in range(3):  # Ray gives a node 30 s to register, which no setting changes, and a busy machine may need longer
            with open(self._log(name), "w") as log:
                process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            self._processes[name] = process
            wait_until(lambda: self._started(name) or self._processes[name].poll() is not None, 20)
            if self._started(name):
                return
            self.stop(name)
        text = self._log(name).read_text()
        self.close()
        raise RuntimeError(f"the node {name} did not start:\n{text[-3000:]}")

    def _started(self, name: str) -> bool:
        return "Ray runtime started" in self._log(name).read_text()

    def _log(self, name: str) -> Path:
        return Path(self._directory) / f"{name}.log"

    def stop(self, name: str) -> None:
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(deadline(2))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # the session that `_start` made
                process.wait(deadline(1))

    def close(self) -> None:
        for name in reversed(self._processes):
            self.stop(name)
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
