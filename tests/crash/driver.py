"""Kill the service and its database at random moments, start again, and look for what is missing.

    python -m tests.crash.driver --cycles 1000 --seed 1

Each cycle: clients write and read, something is killed, what is down is started again, everything
is compared with what was acknowledged, and the audit log with that. Every five cycles have all
faults.

A seed gives the same requests, faults and delays; which of the requests is under way when the fault
comes is the machine's affair. The data of a run that fails is kept.
"""

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from app.server.programs import bin_dir
from tests.crash import checks
from tests.crash.client import Broken, Client
from tests.service.conftest import Service, new_service, workers_of

FAULTS = ("worker", "supervisor", "all processes", "database, immediate stop", "postmaster")
_N_CLIENTS = 3
# Items that nobody touches: so many that training makes lists.
_N_BASE = 1_500
_N_CHECKED_BY_QUERY = 5
_MOST_WRITES = 40
_SHARE_OF_STOPS = 0.25
_CYCLES_A_LINE = 50
_LONGEST_LINE = 400
_LONGEST_DELAY_S = 0.05
_PATIENCE_S = 30
# Of a request that trains; longer, and it hangs.
_TRAINING_PATIENCE_S = 90
# A stop takes a second or two; this is a busy machine's.
_LONGEST_STOP_S = 20


@dataclass
class Run:
    """A service that is killed again and again, and those who use it."""

    service: Service
    seed: int
    index: dict[str, str] = field(
        default_factory=lambda: {
            "index_name": checks.INDEX_NAME,
            "index_key": secrets.token_hex(32),
        }
    )
    clients: list[Client] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    n_trained: int = 0
    hung: str | None = None

    def prepare(self) -> None:
        """Start the service and create the index."""
        self.service.start()
        answer = self.service.post("indexes/create", {**self.index, "dimension": 4})
        assert answer.status_code == httpx.codes.OK, answer.text
        base = [
            {"id": f"base-{number}", "vector": [9.0, number / 8, 0.0, 1.0]}
            for number in range(_N_BASE)
        ]
        answer = self.service.post("vectors/upsert", {**self.index, "items": base})
        assert answer.status_code == httpx.codes.OK, answer.text
        self.clients = [
            Client(self.service.url, self.index, number) for number in range(_N_CLIENTS)
        ]

    def cycle(self, number: int) -> None:
        """Work, kill, start, verify. Raises `Broken`."""
        rng = random.Random(f"{self.seed} {number}")
        order = random.Random(f"{self.seed} faults {number // len(FAULTS)}").sample(
            FAULTS, len(FAULTS)
        )
        fault = order[number % len(FAULTS)]
        self.faults[fault] += 1
        self._work_until(fault, rng)
        self._restart(fault, rng)
        self._verify(rng)
        self._make_and_drop_an_index(rng)

    def _work_until(self, fault: str, rng: random.Random) -> None:
        stop = threading.Event()
        threads = [
            threading.Thread(target=client.work, args=(random.Random(rng.random()), stop))
            for client in self.clients
        ]
        threads.append(
            threading.Thread(target=self._train_until, args=(stop, random.Random(rng.random())))
        )
        for thread in threads:
            thread.start()
        self._wait_for_writes(rng.randint(1, _MOST_WRITES))
        time.sleep(rng.uniform(0, _LONGEST_DELAY_S))
        self._commit(fault, rng)
        # Those who were not hit go on for a moment.
        time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        for client in self.clients:
            if client.failure:
                raise Broken(client.failure)
        if self.hung:
            raise Broken(self.hung)

    def _train_until(self, stop: threading.Event, rng: random.Random) -> None:
        """Train with ever other numbers of lists, until told to stop or let down."""
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(base_url=f"{self.service.url}/v1/", timeout=_TRAINING_PATIENCE_S) as http,
        ):
            while not stop.is_set():
                try:
                    answer = http.post(
                        "indexes/train", json={**self.index, "n_lists": rng.choice((4, 8, 16))}
                    )
                except httpx.ReadTimeout:
                    self.hung = f"a training has not answered for {_TRAINING_PATIENCE_S} s"
                    return
                if answer.status_code != httpx.codes.OK or answer.json()["status"] != "success":
                    return
                self.n_trained += 1

    def _wait_for_writes(self, count: int) -> None:
        """Let the clients write `count` times more: the fault then hits a busy service, however
        slow the machine.
        """
        wanted = count + sum(client.n_acknowledged for client in self.clients)
        deadline = time.monotonic() + _PATIENCE_S
        while sum(client.n_acknowledged for client in self.clients) < wanted:
            if time.monotonic() > deadline:
                raise Broken("the service does not take writes")
            time.sleep(0.005)

    def _commit(self, fault: str, rng: random.Random) -> None:
        supervisor = self._supervisor()
        if fault == "worker":
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers_of(supervisor.pid)).kill()
        elif fault == "supervisor":
            supervisor.kill()
        elif fault == "all processes":
            os.killpg(supervisor.pid, signal.SIGKILL)
        else:
            # What `pg_ctl stop -m immediate` sends; and what the kernel sends when memory is short.
            os.kill(self._postmaster(), signal.SIGQUIT if fault == FAULTS[3] else signal.SIGKILL)

    def _restart(self, fault: str, rng: random.Random) -> None:
        if fault == "worker":
            self._wait_for_workers()
            return
        if fault not in {"supervisor", "all processes"}:
            # The service cannot bring its database back by itself: its supervisor is what does, at
            # the start. An operator stops it first, or kills it.
            (self._stop if rng.random() < _SHARE_OF_STOPS else self.service.kill)()
        elif self.service.process is not None:
            self.service.process.wait(_PATIENCE_S)
            self._wait_for_orphans()
        self._start()

    def _start(self) -> None:
        try:
            self.service.start()
        except AssertionError as error:
            # Its message is all of the log, of which the end is shown anyway.
            raise Broken("the service does not start again") from error

    def _stop(self) -> None:
        started = time.monotonic()
        self.service.stop()
        if (took := time.monotonic() - started) > _LONGEST_STOP_S:
            raise Broken(f"without its database the service took {took:.0f} s to stop")

    def _wait_for_orphans(self) -> None:
        """Workers end within a second of their supervisor; until then they answer whoever waits for
        the next.
        """
        deadline = time.monotonic() + _PATIENCE_S
        with contextlib.suppress(httpx.TransportError):
            while time.monotonic() < deadline:
                httpx.get(f"{self.service.url}/v1/health", timeout=_PATIENCE_S)
                time.sleep(0.05)
            raise Broken("workers outlive their supervisor")

    def _wait_for_workers(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if (
                    self.service.post("vectors/num_vectors", self.index).status_code
                    == httpx.codes.OK
                ):
                    return
            time.sleep(0.05)
        raise Broken("no worker answers after one was killed")

    def _verify(self, rng: random.Random) -> None:
        with httpx.Client(base_url=f"{self.service.url}/v1/", timeout=_TRAINING_PATIENCE_S) as http:
            for client in self.clients:
                client.verify(http)
            held = {name: item for client in self.clients for name, item in client.held().items()}
            listed = http.post("vectors/list_ids", json=self.index).json()
            base = [f"base-{number}" for number in range(_N_BASE)]
            if sorted(listed["ids"]) != sorted([*held, *base]):
                raise Broken("list_ids does not list what is stored")
            counted = http.post("vectors/num_vectors", json=self.index).json()
            if counted != {"result": len(held) + _N_BASE}:
                raise Broken(f"num_vectors says {counted}, stored are {len(held) + _N_BASE}")
            for name in rng.sample(sorted(held), min(_N_CHECKED_BY_QUERY, len(held))):
                # All lists and all items: what is looked for here is not the recall.
                body = {
                    **self.index,
                    "query_vectors": held[name]["vector"],
                    "n_probes": 16,
                    "rerank_mult": 10_000,
                }
                body |= {"top_k": 1, "include": ["distance"]}
                found = http.post("vectors/query", json=body).json()["results"]
                if found != [{"id": name, "distance": 0.0}]:
                    raise Broken(f"a query for {name} finds {found}")
            self._train_again(http, rng)
            status = http.get("indexes/training-status").json()
            if status["training_indexes"]:
                raise Broken(f"a training is stuck: {status}")
        self._check_audit()
        self._check_leftovers()

    def _train_again(self, http: httpx.Client, rng: random.Random) -> None:
        trained = http.post(
            "indexes/train", json={**self.index, "n_lists": rng.choice((4, 8, 16))}
        ).json()
        if trained["status"] != "success":
            raise Broken(f"no training after the restart: {trained['message']}")

    def _check_audit(self) -> None:
        """The chain is whole, and has each write that was acknowledged once, and none that was not
        sent.
        """
        if problems := checks.audit_problems(self.service.dsn):
            raise Broken(f"the audit log is not whole: {problems[:3]}")
        # The first is that of the items nobody touches.
        least = 1 + sum(client.n_acknowledged for client in self.clients)
        most = least + sum(client.n_in_doubt for client in self.clients)
        if not least <= (found := checks.n_audited_writes(self.service.dsn)) <= most:
            raise Broken(f"the audit log has {found} writes, not {least} to {most}")

    def _check_leftovers(self) -> None:
        """What a deleted index leaves is swept in the background, so there is a while to wait."""
        deadline = time.monotonic() + _PATIENCE_S
        while leftovers := checks.leftovers(self.service.dsn):
            if time.monotonic() > deadline:
                raise Broken(f"left behind: {leftovers}")
            time.sleep(0.2)

    def _make_and_drop_an_index(self, rng: random.Random) -> None:
        """Leave work for the sweeper just before the next fault, or an empty index for ever."""
        body = {
            "index_name": f"short-lived-{rng.random()}",
            "index_key": self.index["index_key"],
            "dimension": 4,
        }
        for route in ("indexes/create", "indexes/delete"):
            answer = self.service.post(route, body)
            if answer.status_code != httpx.codes.OK:
                raise Broken(f"{route} was answered {answer.status_code}")

    def _supervisor(self) -> psutil.Process:
        assert self.service.process is not None
        return psutil.Process(self.service.process.pid)

    def _postmaster(self) -> int:
        return int((self.service.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])

    def figures(self) -> str:
        """One line about the run so far."""
        faults = ", ".join(f"{count} x {fault}" for fault, count in sorted(self.faults.items()))
        n_acknowledged = sum(client.n_acknowledged for client in self.clients)
        n_in_doubt = sum(client.n_in_doubt for client in self.clients)
        writes = f"{n_acknowledged:,} writes acknowledged, {n_in_doubt:,} in doubt"
        return (
            f"{self.faults.total()} cycles ({faults}), {writes}, {self.n_trained:,} trainings "
            "finished under way"
        )


def crash(n_cycles: int, seed: int) -> str:
    """Run `n_cycles` cycles and return the figures. Raises `Broken`, naming seed, cycle and where
    the data is.
    """
    assert (bin_dir() / "postgres").exists()
    directory = Path(tempfile.mkdtemp(prefix="sealdex-crash-"))
    service = new_service(
        directory, SEALDEX_WORKERS="2", SEALDEX_AUDIT_READS="true", SEALDEX_LOG_LEVEL="INFO"
    )
    run = Run(service, seed)
    try:
        run.prepare()
        for number in range(n_cycles):
            try:
                run.cycle(number)
            except (Broken, httpx.TransportError) as broken:
                where = f"seed {seed}, cycle {number}, data in {directory}"
                raise Broken(f"{where}: {broken}\n{_end_of(service.log)}") from None
            if number % _CYCLES_A_LINE == _CYCLES_A_LINE - 1:
                print(run.figures(), flush=True)
    finally:
        if service.process is not None and service.process.poll() is None:
            service.stop()
    shutil.rmtree(directory)
    return run.figures()


def _end_of(log: Path) -> str:
    return "\n".join(line[:_LONGEST_LINE] for line in log.read_text().splitlines()[-20:])


def main() -> None:
    """Run as many cycles as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    started = time.monotonic()
    try:
        print(
            crash(options.cycles, options.seed),
            f"in {time.monotonic() - started:.0f} s, nothing lost",
        )
    except Broken as broken:
        sys.exit(str(broken))


if __name__ == "__main__":
    main()
