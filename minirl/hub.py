"""Why a download from the Hugging Face hub failed: one reason and one advice for each kind of error."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from minirl.errors import first_line, without_colors

CERTIFICATE = ("certificate", "ssl", "tls")
PROXY = ("proxy", "407")


def hub_problem(error: BaseException, kind: str = "model") -> str:
    """What went wrong and what to do. kind: "model" or "data set".

    The hub's client hides an error behind another one (a bad certificate behind "no such file in the cache"), so the whole chain of causes
    is looked at, and the most specific kind wins.
    """
    chain = list(_causes(error))
    for problem in (_disk, _access, _certificate_or_proxy, _status, _offline, _network):
        for cause in chain:
            if sentence := problem(cause, kind):
                return sentence
    if kind == "data set":  # the library `datasets` lists the configurations and splits that exist at the end of its message
        return f"{' '.join(without_colors(str(error)).split())[:400].rstrip('.')}; check its name, configuration and split"
    return f"the hub's client says: {first_line(chain[-1])}; check the name and the network"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _disk(error: BaseException, kind: str) -> str | None:
    if not isinstance(error, OSError) or _is_transport(error):  # an SSLError has an errno that means something else
        return None
    cache = error.filename or _cache()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {cache} is full ({first_line(error)}); free space, or set HF_HOME to a directory on another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{cache} cannot be written ({first_line(error)}); change its permissions, or set HF_HOME to a directory of your own"
    return None


def _access(error: BaseException, kind: str) -> str | None:
    from huggingface_hub import errors

    line = first_line(error)
    if isinstance(error, errors.GatedRepoError):
        return f"the {kind} is gated ({line}); accept its licence on its page, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the {kind} has no such revision ({line}); name a branch, tag or commit that it has"
    if isinstance(error, errors.DisabledRepoError):
        return f"the hub has disabled the {kind} ({line}); name another one"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no {kind} of that name, or it is private ({line}); check the spelling, and for a private one log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.HFValidationError):
        return f"this is no name of a {kind} on the hub, which has the form owner/name ({line}); check the spelling or the path"
    return None


def _certificate_or_proxy(error: BaseException, kind: str) -> str | None:
    line, kind_of_error = first_line(error), type(error).__name__.lower()
    if any(word in line.lower() or word in kind_of_error for word in CERTIFICATE) and _is_transport(error):
        return (
            f"the certificate of the connection to the hub is not accepted ({line}); behind a proxy that inspects traffic, set "
            "SSL_CERT_FILE to the file of its certificate"
        )
    if any(word in line.lower() or word in kind_of_error for word in PROXY) and _is_transport(error):
        return f"the proxy refuses the connection to the hub ({line}); check HTTPS_PROXY and NO_PROXY"
    return None


def _status(error: BaseException, kind: str) -> str | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code is None or code < 400:
        return None
    advice = {
        401: "log in with `hf auth login` or set HF_TOKEN",
        403: "the token may not read it; ask for access, or use another token",
        429: "the hub limits how often it may be asked; wait, or log in",
    }.get(code, "the hub itself has trouble; try again later" if code >= 500 else "check the name")
    return f"the hub answers with status {code} ({first_line(error)}); {advice}"


def _offline(error: BaseException, kind: str) -> str | None:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled) or (isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE):
        return f"the {kind} is not in {_cache()}, and HF_HUB_OFFLINE forbids to download it; unset it, or check the name"
    return None


def _network(error: BaseException, kind: str) -> str | None:
    if not _is_transport(error):
        return None
    if "timeout" in type(error).__name__.lower():
        return f"the hub does not answer in time ({first_line(error)}); check the network, or try again"
    return f"the hub cannot be reached ({first_line(error)}); check the network, or download it elsewhere and name its directory"


def _is_transport(error: BaseException) -> bool:
    """Whether the error comes from the connection: of httpx, requests, urllib3, ssl or a socket."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return type(error).__module__.split(".")[0] in ("httpx", "httpcore", "requests", "urllib3", "ssl", "socket")


def _cache() -> Path | str:
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
