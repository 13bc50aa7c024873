"""The connection to a cluster's job API. Each way in which it fails becomes one sentence."""

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from actors.cluster_access import check_listens, refusal
from minirl.errors import InputError, RunError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

OTHER_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's client would prefer them to the URL that it is given
PORT = 8265  # of Ray's dashboard, which serves the job API
AGENT_TIMEOUT_S = 60.0  # a head that has just started has no job agent for some seconds
T = TypeVar("T")


def connect(address: str) -> "JobSubmissionClient":
    """A client of the job API at `address`, such as "http://10.0.0.1:8265". Raises InputError if there is none, or no valid token."""
    url = dashboard_url(address)
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    check_listens(parts.hostname, port, "check the address, and that the cluster runs and its dashboard can be reached from here")
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # uploads and closed connections are no news
    others = {name: os.environ.pop(name) for name in OTHER_ADDRESSES if name in os.environ}
    try:
        return answered(lambda: JobSubmissionClient(url), url)
    finally:
        os.environ |= others


def dashboard_url(address: str) -> str:
    """The dashboard's URL. "10.0.0.1" and "10.0.0.1:8265" are read as http URLs."""
    if address.startswith("ray://"):
        raise InputError(f"--address {address} is Ray Client's address; give the dashboard's URL, such as http://HOST:{PORT}")
    text = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError(f"--address {address} is not a URL ({error}); give the dashboard's, such as http://HOST:{PORT}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--address {address} is not the URL of a dashboard; give one such as http://HOST:{PORT}")
    if port is None and parts.scheme == "http" and not parts.path:
        return f"{text}:{PORT}"
    return text.rstrip("/")


def answered(request: Callable[[], T], url: str) -> T:
    """The answer to a request to the job API. Errors of the connection and of the token become an InputError.

    A missing job agent is waited for.
    """
    from ray.exceptions import AuthenticationError

    end = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return request()
        except AuthenticationError as error:
            raise InputError(refusal(url, first_line(error))) from None
        except ConnectionError:
            raise InputError(f"{url} does not answer like a Ray dashboard; give the dashboard's URL (port {PORT} by default)") from None
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > end:
                raise RunError(
                    f"the head of {url} has had no job agent for {AGENT_TIMEOUT_S:g} s; look for dashboard_agent in its logs. Another Ray "
                    "on that machine may hold its port: start the head with --dashboard-agent-listen-port=0"
                ) from None
            time.sleep(0.5)
