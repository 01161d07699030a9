"""Metrics in Prometheus's format count what happened, in each application for itself."""

import socket
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.lmcore.serve.toy import Running, Toy, running


def values(server: Running) -> dict[tuple, float]:
    """(name, labels …) -> value of every sample."""
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_requests_tokens_and_times_are_counted():
    with running() as server:
        for stream in (False, True):
            asked = {"prompt": ["abc", "d"], "max_tokens": 6, "temperature": 0, "stream": stream}
            httpx.post(f"{server.url}/v1/completions", json=asked).raise_for_status()
        httpx.post(f"{server.url}/v1/completions", json={})
        httpx.get(f"{server.url}/nope")
        httpx.get(f"{server.url}/v1/models/toy")
        found = values(server)
        assert found["twinlm_requests_total", "/v1/completions", "200"] == 2
        assert found["twinlm_requests_total", "/v1/completions", "400"] == 1
        assert found["twinlm_requests_total", "other", "404"] == 1
        assert found["twinlm_prompt_tokens_total",] == 8
        assert found["twinlm_generated_tokens_total",] == 24
        assert found["twinlm_time_to_first_token_seconds_count",] == 2
        assert found["twinlm_time_per_token_seconds_count",] == 2
        assert 0 < found["twinlm_time_per_token_seconds_sum",] < found["twinlm_request_seconds_sum",]
        assert found["twinlm_time_to_first_token_seconds_sum",] < found["twinlm_request_seconds_sum",]
        assert found["twinlm_slots",] == 3
        assert (found["twinlm_active_slots",], found["twinlm_queue_length",]) == (0, 0)
        assert found["twinlm_unfinished_total",] == 0


def test_slots_and_queue_are_measured_while_they_are_full():
    with running(slots=Toy(count=2, delay=0.02)) as server:
        asked = b'{"prompt": ["a", "b", "c", "d", "e"], "max_tokens": 80}'
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head % len(asked) + asked)
            while server.scheduler.active < 2:
                time.sleep(0.001)
            found = values(server)
            assert (found["twinlm_active_slots",], found["twinlm_queue_length",]) == (2, 3)
        while server.scheduler.pending:
            time.sleep(0.001)
        found = values(server)
        assert found["twinlm_unfinished_total",] == 1
        assert found["twinlm_time_to_first_token_seconds_count",] == 0


def test_each_application_counts_for_itself(server: Running):
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
    with running() as other:
        assert values(other)["twinlm_generated_tokens_total",] == 0
    assert values(server)["twinlm_generated_tokens_total",] > 0
