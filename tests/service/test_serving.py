"""How the service serves: TLS, its end, and limits that all workers share."""

import secrets
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg

from tests.certificates import write_certificate
from tests.locks import wait_until_blocked
from tests.service.conftest import Service

KEY = secrets.token_hex(32)
INDEX = {"index_name": "serving", "index_key": KEY}


def test_tls_is_served_by_certificate_and_key(own_service: Service, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    own_service.environment = {
        "SSL_CERT_PATH": str(certificate),
        "SSL_KEY_PATH": str(key),
        "SEALDEX_WORKERS": "1",
    }
    own_service.verify = ssl.create_default_context(cafile=str(certificate))
    own_service.start()
    answer = httpx.get(f"{own_service.url}/v1/ready", verify=own_service.verify)
    assert answer.json() == {"status": "ready"}
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    try:
        httpx.get(f"http://127.0.0.1:{own_service.port}/v1/health")
    except httpx.TransportError:
        pass
    else:
        raise AssertionError("plain HTTP was answered on the TLS port")


def idle_connection(service: Service) -> socket.socket:
    """Return a connection whose one request was answered."""
    idle = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    idle.sendall(b"GET /v1/health HTTP/1.1\r\nHost: here\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += idle.recv(4096)
    return idle


def test_a_request_in_work_is_finished_before_the_service_ends(own_service: Service) -> None:
    own_service.environment = {"SEALDEX_WORKERS": "1"}
    own_service.start()
    assert own_service.post("indexes/create", {**INDEX, "dimension": 2}).status_code == 200
    body = {**INDEX, "items": [{"id": "a", "vector": [1, 2]}]}
    with (
        psycopg.connect(own_service.dsn) as database,
        ThreadPoolExecutor(2) as pool,
        idle_connection(own_service) as idle,
    ):
        # The upsert needs the counts, so it is in work until this transaction ends.
        database.execute("LOCK TABLE item_counts IN ACCESS EXCLUSIVE MODE")
        slow = pool.submit(own_service.post, "vectors/upsert", body)
        wait_until_blocked(own_service.dsn)
        end = pool.submit(own_service.stop)
        # A worker that ends closes the connections without a request in work.
        assert idle.recv(1) == b""
        assert not slow.done()
        assert not end.done()
        database.commit()
        assert slow.result(timeout=30).status_code == 200
    end.result(timeout=60)
    assert own_service.process is not None
    assert own_service.process.returncode == 0
    own_service.start()
    assert own_service.post("vectors/num_vectors", INDEX).json() == {"result": 1}


def test_the_rate_of_a_key_is_shared_by_all_workers(own_service: Service) -> None:
    rate, burst = 20, 10
    own_service.environment = {
        "SEALDEX_WORKERS": "2",
        "SEALDEX_RATE_LIMIT_PER_S": str(rate),
        "SEALDEX_RATE_LIMIT_BURST": str(burst),
    }
    own_service.start()
    # New connections, so that both workers get some.
    start = time.monotonic()
    answers = [httpx.get(f"{own_service.url}/v1/indexes/list") for _ in range(80)]
    duration = time.monotonic() - start
    n_good = sum(answer.status_code == httpx.codes.OK for answer in answers)
    refused = [answer for answer in answers if answer.status_code == httpx.codes.TOO_MANY_REQUESTS]
    assert n_good + len(refused) == len(answers)
    assert n_good <= burst + rate * duration + 1
    if duration < 2:
        assert refused
    assert all(answer.headers["Retry-After"] == "1" for answer in refused)
    # Health has no key and no limit.
    assert {httpx.get(f"{own_service.url}/v1/health").status_code for _ in range(20)} == {200}
