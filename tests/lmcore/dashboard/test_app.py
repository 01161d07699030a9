import json
import os
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from lmcore.dashboard import make_app
from lmcore.dashboard.app import REPORT_POLICY
from lmcore.serve.limits import HEADERS
from lmcore.serve.listening import known_hosts
from tests.lmcore.dashboard.run_folders import rows, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "one", sample_10="first", sample_20="second")
    write_run(tmp_path / "runs" / "deep" / "two", config="train:\n  steps: 7\n")
    write_run(tmp_path / "outside", sample_1="secret")
    (tmp_path / "runs" / "check.html").write_text("<title>same model</title>")
    (tmp_path / "outside" / "secret.html").write_text("secret")
    return tmp_path / "runs"


@pytest.fixture
def client(runs: Path) -> TestClient:
    return TestClient(make_app(runs, known_hosts("127.0.0.1")), base_url="http://localhost:8001")


def test_runs_and_reports_are_listed(client: TestClient, runs: Path):
    found = client.get("/api/runs").json()
    assert found["folder"] == str(runs)
    assert [run["name"] for run in found["runs"]] == ["deep/two", "one"]
    assert [(report["path"], report["title"]) for report in found["reports"]] == [("check.html", "same model")]


def test_the_list_follows_what_happens_in_the_folder(client: TestClient, runs: Path):
    def listed() -> dict[str, int]:
        return {run["name"]: run["step"] for run in client.get("/api/runs").json()["runs"]}

    assert listed() == {"deep/two": 100, "one": 100}
    with (runs / "one" / "metrics.jsonl").open("a") as file:
        file.write(rows(1, start=11))
    write_run(runs / "three")
    (runs / "deep").rename(runs.parent / "moved")
    assert listed() == {"one": 110, "three": 100}


def test_a_curve_follows_the_file(client: TestClient, runs: Path):
    found = client.get("/api/curve", params={"run": "one", "metric": "loss", "x": "tokens", "smooth": "0.5"}).json()
    assert found["raw"]["x"] == list(range(1000, 11000, 1000))
    assert len(found["smooth"]["y"]) == 10
    assert found["metrics"] == ["tokens", "loss", "tokens_per_second"]
    with (runs / "one" / "metrics.jsonl").open("a") as file:
        file.write(rows(1, start=11) + "junk\n")
    found = client.get("/api/curve", params={"run": "one"}).json()
    assert (found["raw"]["step"][-1], found["rows"], found["rejected"]) == (110, 11, 1)


def test_what_is_unchanged_is_not_sent_again(client: TestClient, runs: Path):
    first = client.get("/api/curve", params={"run": "one"})
    headers = {"If-None-Match": first.headers["ETag"]}
    again = client.get("/api/curve", params={"run": "one"}, headers=headers)
    assert (again.status_code, again.content) == (304, b"")
    with (runs / "one" / "metrics.jsonl").open("a") as file:
        file.write(rows(1, start=11))
    assert client.get("/api/curve", params={"run": "one"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "query",
    [{"x": "loss"}, {"smooth": "1"}, {"smooth": "-0.1"}, {"smooth": "nan"}, {"smooth": "much"}, {"smooth": "inf"}],
)
def test_a_query_that_makes_no_sense_is_refused(client: TestClient, query: dict[str, str]):
    answer = client.get("/api/curve", params={"run": "one"} | query)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_curves_hold_no_nan(client: TestClient, runs: Path):
    with (runs / "one" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "tokens": 11000, "loss": null}\n{"step": 120, "tokens": 12000, "loss": NaN}\n')
    for query in ({}, {"smooth": "0.9"}, {"x": "time"}, {"log_x": "1"}):
        text = client.get("/api/curve", params={"run": "one"} | query).text
        found = json.loads(text, parse_constant=lambda name: pytest.fail(name))
        assert found["raw"]["y"][-2:] == [None, None]
    client.get("/api/runs").json()


def test_samples_are_listed_and_read(client: TestClient):
    listed = client.get("/api/samples", params={"run": "one"}).json()
    assert listed == [{"step": 10, "file": "sample-10.txt"}, {"step": 20, "file": "sample-20.txt"}]
    assert client.get("/api/sample", params={"run": "one", "file": "sample-20.txt"}).json() == {"text": "second"}
    assert client.get("/api/sample", params={"run": "one", "file": "sample-30.txt"}).status_code == 404


def test_configs_of_the_runs_that_are_there_are_compared(client: TestClient):
    found = client.get("/api/configs", params={"run": ["one", "gone", "deep/two"]}).json()
    assert found["runs"] == ["one", "deep/two"]
    assert found["fields"] == [{"field": "train.steps", "values": ["100", "7"]}]


@pytest.mark.parametrize("path", ["/api/curve", "/api/samples", "/api/sample"])
@pytest.mark.parametrize(
    "run", ["", "gone", "../outside", "one/../../outside", "/etc", "deep", "linked", "one\0", "%2e%2e/outside"]
)
def test_no_other_folder_is_taken_for_a_run(client: TestClient, runs: Path, path: str, run: str):
    (runs / "linked").symlink_to(runs.parent / "outside", target_is_directory=True)
    answer = client.get(path, params={"run": run, "file": "sample-1.txt"})
    assert (answer.status_code, answer.json()) == (404, {"error": "no such run"})
    assert client.get("/api/configs", params={"run": run}).json()["runs"] == []
    absolute = client.get(path, params={"run": str(runs.parent / "outside"), "file": "sample-1.txt"})
    assert absolute.status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.html",
        "%2e%2e/outside/secret.html",
        "..%2foutside%2fsecret.html",
        "%252e%252e/outside/secret.html",
        "one/../../outside/secret.html",
        "one/..%2f..%2foutside/secret.html",
        "..%5coutside%5csecret.html",
        "/{absolute}",
        "%2f{absolute}",
        "link.html",
        "linked/secret.html",
        "one/metrics.jsonl",
        "one/config.yaml",
        "one",
        "absent.html",
        "check.html%00",
        "check.html/",
        "",
    ],
)
def test_only_html_files_in_the_folder_are_served(client: TestClient, runs: Path, path: str):
    (runs / "link.html").symlink_to(runs.parent / "outside" / "secret.html")
    (runs / "linked").symlink_to(runs.parent / "outside", target_is_directory=True)
    absolute = str(runs.parent / "outside" / "secret.html").lstrip("/")
    answer = client.get(f"/reports/{path.format(absolute=absolute)}")
    assert answer.status_code == 404
    assert "secret" not in answer.text
    assert client.get("/reports/check.html").status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/..%2fapp.py", "/static/app.py", "/static/", "/.env", "/api/", "/api/folder"]
)
def test_nothing_else_is_served(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def test_a_report_may_do_nothing_but_show_itself(client: TestClient):
    answer = client.get("/reports/check.html")
    assert answer.headers["Content-Security-Policy"] == REPORT_POLICY
    assert REPORT_POLICY.startswith("sandbox; default-src 'none'")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/api/runs", "/api/curve", "/absent"])
def test_every_answer_is_under_a_policy(client: TestClient, path: str):
    answer = client.get(path)
    assert [answer.headers[name.decode()] for name, _ in HEADERS] == [value.decode() for _, value in HEADERS]


def test_every_file_that_the_page_asks_for_is_there_and_from_here(client: TestClient):
    pages = {"/": client.get("/").text}
    for path in pages:
        names = re.findall(r'(?:src|href)="([^"]+)"', pages[path])
        assert names
        for name in names:
            assert not name.startswith(("http", "/"))
    waiting, seen = ["app.js"], set()
    while waiting:
        name = waiting.pop()
        answer = client.get(f"/static/{name}")
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert "http://www.w3.org/2000/svg" in answer.text or "://" not in answer.text
        seen.add(name)
        waiting += [other for other in re.findall(r'from "\./(.*?)"', answer.text) if other not in seen]
    assert len(seen) == 6
    assert client.get("/static/page.css").headers["Content-Type"] == "text/css; charset=utf-8"
    assert client.get("/static/icon.svg").headers["Content-Type"].startswith("image/svg+xml")


@pytest.mark.parametrize("host", ["localhost", "localhost:8001", "127.0.0.1:8001", "[::1]:8001", "LOCALHOST"])
def test_this_machine_s_names_are_answered(client: TestClient, host: str):
    assert client.get("/api/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8001", "", "[::2]", "10.0.0.1"]
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/reports/check.html"])
def test_another_name_is_refused_against_dns_rebinding(client: TestClient, host: str, path: str):
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(
        f"Host: found {host!r}, expected one of 127.0.0.1, ::1, localhost"
    )


@pytest.mark.parametrize("header", ["localhost", "127.0.0.1:8001", "[::1]:8001", "127.0.0.2"])
def test_names_of_this_machine_are_answered(runs: Path, header: str):
    client = TestClient(make_app(runs, known_hosts("127.0.0.2")), base_url="http://localhost")
    assert client.get("/api/runs", headers={"Host": header}).status_code == 200


def test_every_name_is_answered_where_others_may_read(runs: Path):
    client = TestClient(make_app(runs, known_hosts("0.0.0.0")), base_url="http://localhost")
    assert client.get("/api/runs", headers={"Host": "box.local:8001"}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(client: TestClient, runs: Path, method: str):
    before = {path: (path.stat().st_mtime_ns if path.is_file() else 0) for path in runs.rglob("*")}
    for path in ("/api/runs", "/reports/check.html", "/", "/static/app.js"):
        assert client.request(method, path).status_code == 405
    for path in ("/api/runs", "/api/curve?run=one", "/api/samples?run=one", "/reports/check.html"):
        client.get(path)
    assert {path: (path.stat().st_mtime_ns if path.is_file() else 0) for path in runs.rglob("*")} == before


def test_text_reaches_the_page_as_json_alone(client: TestClient, runs: Path):
    name = '<img src=x onerror="alert(1)">'
    write_run(runs / name)
    answer = client.get("/api/runs")
    assert answer.headers["Content-Type"] == "application/json"
    assert name in [run["name"] for run in answer.json()["runs"]]
    assert name not in client.get("/").text


def test_old_rows_do_not_stay_in_memory_forever(runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmcore.dashboard.app.MAX_READERS", 1)
    client = TestClient(make_app(runs, known_hosts("127.0.0.1")), base_url="http://localhost")
    for run in ("one", "deep/two", "one"):
        assert client.get("/api/curve", params={"run": run}).json()["rows"] == 10


def test_a_folder_that_vanishes_is_empty(client: TestClient, runs: Path):
    os.rename(runs, runs.with_name("elsewhere"))
    assert client.get("/api/runs").json() | {"folder": ""} == {"folder": "", "runs": [], "reports": []}
    assert client.get("/api/curve", params={"run": "one"}).status_code == 404
