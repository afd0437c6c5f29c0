"""Who may ask `soe serve`."""

from __future__ import annotations

import re

import pytest

from flows.serving.access import Access, read_token
from flows.serving.guard import HEADERS
from tests.flows.serving.service import TOKEN, refusal, stranger


def test_the_token_is_made_once_and_nobody_else_can_read_it(tmp_path):
    file = tmp_path / "new" / "token"
    token = read_token(file)
    assert len(token) >= 40 and read_token(file) == token and file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(ValueError, match="can be read by others. Run: chmod 600"):
        read_token(file)
    file.chmod(0o600)
    file.write_text("short\n")
    with pytest.raises(ValueError, match="holds no token.*16 ASCII characters"):
        read_token(file)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/api/soup", "/api/specialists", "/docs", "/openapi.json", "/nowhere"]
)
def test_nothing_is_told_without_the_token(client, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = stranger(client).get(path, headers=headers)
        assert "oken" in refusal(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_without_a_token_the_service_says_only_that_it_is_well(client):
    web = stranger(client)
    assert web.get("/healthz").json() == {"status": "ok"}
    page = web.get("/")
    assert page.status_code == 401 and "soe serve" in page.text and "topics" not in page.text
    assert web.get("/?token=wrong").status_code == 401 and not web.cookies


def test_the_page_gives_a_cookie_for_the_token(client):
    browser = stranger(client)
    answer = browser.get("/", params={"token": TOKEN})
    assert answer.status_code == 200 and TOKEN not in answer.text
    said = answer.headers["set-cookie"].lower()
    assert "httponly" in said and "samesite=strict" in said and TOKEN not in said
    assert browser.get("/").status_code == browser.get("/api/soup").status_code == 200
    assert browser.get("/v1/models").status_code == 401
    foreign = {"Origin": "http://127.0.0.1:9999"}
    answer = browser.post("/api/specialists", json={"texts": "a"}, headers=foreign)
    assert "other origins" in refusal(answer, 403)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8300", "localhost.evil.example", ""]
)
def test_a_name_that_is_not_ours_is_refused(client, host):
    for path in ("/healthz", "/", "/v1/models"):
        assert "Host header" in refusal(client.get(path, headers={"Host": host}), 421)


def test_the_names_we_answer_to():
    here = Access(TOKEN)
    assert all(map(here.is_our_name, ("127.0.0.1:8300", "LOCALHOST", "[::1]:1", "localhost:80")))
    named = Access(TOKEN, host="box.lan")
    assert named.is_our_name("box.lan:8300") and not here.is_our_name("box.lan:8300")
    everywhere = Access(TOKEN, host="0.0.0.0")
    assert everywhere.is_our_name("10.1.2.3:8300") and not everywhere.is_our_name("evil.example")
    assert not here.is_our_name("10.1.2.3:8300")


def test_only_our_own_scripts_may_run(client):
    page = client.get("/", params={"token": TOKEN})
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert not re.findall(r"<script(?! src=)|\son\w+=|style=|https?://", page.text)
    assert client.get("/v1/models").headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in client.get("/api/soup", headers={"Origin": "null"}).headers


@pytest.mark.parametrize(
    ("name", "kind", "begins"),
    [
        ("colours.css", "text/css", "--accent:"),
        ("page.css", "text/css", "body"),
        ("page.js", "text/javascript", "use strict"),
    ],
)
def test_the_parts_of_the_page_need_no_token(client, name, kind, begins):
    answer = stranger(client).get(f"/static/{name}")
    assert answer.status_code == 200 and begins in answer.text
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    assert answer.headers.items() >= {name.lower(): value for name, value in HEADERS.items()}.items()


def test_the_page_takes_every_part_from_the_service(client):
    page = client.get("/", params={"token": TOKEN}).text
    parts = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(parts) == 7 and all(client.get(part).status_code == 200 for part in parts)


@pytest.mark.parametrize(
    "path",
    ["", "page.html", "%2e%2e/page.html", "..%2fpage.html", "%2e%2e/%2e%2e/app.py", "%00", "a" * 300],
)
def test_nothing_else_lies_there(client, path):
    assert "There is nothing at" in refusal(stranger(client).get(f"http://127.0.0.1:8300/static/{path}"), 404)


def test_the_cookies_of_other_programs_of_this_machine_do_not_lock_the_page(client):
    """Cookies do not tell ports apart, and some programs keep JSON in theirs."""
    browser = stranger(client)
    browser.get("/", params={"token": TOKEN})
    [(name, value)] = browser.cookies.items()
    header = f'theirs={{"a b": [1]}}; {name}={value}'
    assert stranger(client).get("/api/soup", headers={"Cookie": header}).status_code == 200
