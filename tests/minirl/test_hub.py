"""Each kind of trouble with the hub says its own thing, also where the hub's client hides it behind another error."""

import errno
import ssl

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from minirl.errors import InputError
from minirl.hub import hub_problem
from minirl.model.loading import resolve_model


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/m"))


def hidden(cause: Exception) -> Exception:
    """What `snapshot_download` raises when the hub cannot be asked and its cache has nothing."""
    error = errors.LocalEntryNotFoundError("An error happened while trying to locate the files on the Hub")
    error.__cause__ = cause
    return error


TROUBLE = {
    "gated": (errors.GatedRepoError("Access to model a/b is restricted.", response=answer(403)), "accept its licence"),
    "unknown": (errors.RepositoryNotFoundError("404 Client Error.", response=answer(404)), "no model of that name, or it is private"),
    "revision": (errors.RevisionNotFoundError("404: v9", response=answer(404)), "no such revision"),
    "bad name": (errors.HFValidationError("Repo id must use alphanumeric chars"), "the form owner/name"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device"), "the disk of"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "/cache/x"), "the disk of /cache/x is full"),
    "cache is not writable": (PermissionError(errno.EACCES, "Permission denied", "/cache"), "/cache cannot be written"),
    "certificate": (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "set SSL_CERT_FILE"),
    "certificate of a socket": (ssl.SSLCertVerificationError(1, "certificate verify failed"), "set SSL_CERT_FILE"),
    "proxy": (httpx.ProxyError("407 Proxy Authentication Required"), "check HTTPS_PROXY"),
    "refused token": (errors.HfHubHTTPError("401 Client Error", response=answer(401)), "status 401"),
    "too many requests": (errors.HfHubHTTPError("429 Client Error", response=answer(429)), "status 429"),
    "hub is down": (errors.HfHubHTTPError("503 Server Error", response=answer(503)), "try again later"),
    "no name server": (httpx.ConnectError("[Errno -3] Temporary failure in name resolution"), "the hub cannot be reached"),
    "slow": (httpx.ReadTimeout("timed out"), "does not answer in time"),
    "something new": (RuntimeError("the cache has version 9\nmore"), "the hub's client says: the cache has version 9;"),
}


@pytest.mark.parametrize(("error", "sentence"), TROUBLE.values(), ids=TROUBLE)
def test_each_trouble_says_its_own_thing(monkeypatch, error, sentence):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for raised in (error, hidden(error)):

        def fails(*arguments, raised=raised, **keywords):
            raise raised

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
        with pytest.raises(InputError) as caught:
            resolve_model("a/b", "teacher.model")
        assert str(caught.value).startswith("teacher.model: a/b is no local directory, and the hub does not provide it: ")
        assert sentence in str(caught.value) and "\n" not in str(caught.value)
    others = {kind for _, kind in TROUBLE.values()} - {sentence}
    assert not [other for other in others if other in hub_problem(error) and other not in sentence and sentence not in other]
