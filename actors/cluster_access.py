"""Access to a Ray cluster: whether anybody listens at its address, and its token, whose mode Ray reads when imported."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from minirl.errors import InputError

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
CONNECT_TIMEOUT_S = 10.0
WHERE_A_TOKEN_BELONGS = f"set {TOKEN}, set {TOKEN_FILE} to a file that holds it, or write it to ~/.ray/auth_token"


def token_exists(environment: Mapping[str, str]) -> bool:
    """Whether Ray would find a token: in a variable, or in one of the two files that it looks for."""
    if environment.get(TOKEN):
        return True
    file = Path(environment[TOKEN_FILE]) if environment.get(TOKEN_FILE) else Path(environment.get("HOME", "/")) / ".ray" / "auth_token"
    try:
        return bool(file.read_text().strip())
    except (OSError, UnicodeDecodeError):
        return False


def use_token() -> None:
    """Switches Ray's token mode on wherever there is a token, unless the user chose a mode. Call it before the first import of ray.

    Ray reads the mode when it is imported and ignores a later change. A cluster without tokens accepts a client in token mode.
    """
    if token_exists(os.environ):
        os.environ.setdefault(MODE, "token")


def check_listens(host: str, port: int, advice: str) -> None:
    """Raises InputError, with the advice, if no process accepts connections there. Ray itself takes 21 s to fail, and does not say why."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"nobody listens at {host}:{port} ({error.strerror or error}); {advice}") from None


def refusal(where: str, reason: str) -> str:
    """What to do where a cluster that listens refuses this client, in one sentence. reason: Ray's own words."""
    if not token_exists(os.environ):
        return f"{where} requires a token and none is set; {WHERE_A_TOKEN_BELONGS}"
    token = os.environ.get(TOKEN)
    reason = reason.replace(token, "...") if token else reason
    return f"{where} refuses the token that this command found ({reason}); {WHERE_A_TOKEN_BELONGS}"
