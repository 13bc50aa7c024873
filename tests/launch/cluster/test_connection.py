"""The address of a cluster and its token: every mistake is one sentence, before anything waits for Ray's own deadlines."""

import os
import subprocess
import sys
import time

import pytest

from actors.cluster_access import MODE, refusal, token_exists, use_token
from launch.cluster.connection import connect, dashboard_url
from minirl.errors import InputError
from tests.deadlines import deadline


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("10.0.0.1", "http://10.0.0.1:8265"),
        ("head:9000", "http://head:9000"),
        ("http://head", "http://head:8265"),
        ("https://gateway/ray/", "https://gateway/ray"),
    ],
)
def test_addresses(address, url):
    assert dashboard_url(address) == url


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:port", "ftp://head", "http://"])
def test_what_is_no_address_of_a_dashboard_is_refused(address):
    with pytest.raises(InputError, match=r"^--address .* give "):
        dashboard_url(address)


def test_nobody_listens_is_found_at_once():
    began = time.monotonic()
    with pytest.raises(InputError, match="nobody listens at 127.0.0.1:1"):
        connect("http://127.0.0.1:1")
    assert time.monotonic() - began < deadline(1)


def test_a_token_is_found_where_ray_looks(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert not token_exists(home)
    assert token_exists(home | {"RAY_AUTH_TOKEN": "t"})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t\n")
    assert token_exists(home)
    assert not token_exists(home | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")})


def test_the_mode_follows_the_token_unless_the_user_chose_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", MODE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    use_token()
    assert MODE not in os.environ
    os.environ["RAY_AUTH_TOKEN"] = "t"
    use_token()
    assert os.environ[MODE] == "token"
    os.environ[MODE] = "disabled"
    use_token()
    assert os.environ[MODE] == "disabled"


def test_the_command_sets_the_mode_before_it_imports_ray():
    code = "import sys, launch.cli; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=deadline(30)).returncode == 0


def test_a_message_never_holds_the_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    sentence = refusal("http://head:8265", "Forbidden: s3cret is not valid")
    assert "s3cret" not in sentence and "refuses the token" in sentence
