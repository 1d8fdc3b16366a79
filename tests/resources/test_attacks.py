"""No attack grows a worker, or keeps others from being served."""

from collections.abc import Callable, Iterator

import pytest

from tests.resources.attacks import ATTACKS, MB, Target, Watch, attacked

BOUND = 200 * MB


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with attacked() as target:
        yield target


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_takes_little_memory_and_gives_it_back(
    target: Target, attack: Callable[[Target], None]
) -> None:
    pid = target.worker.pid
    with Watch(target) as watch:
        attack(target)
        served = target.post("vectors/query", {"query_vectors": [1, 1], "top_k": 1})
    assert served.status_code == 200
    assert watch.grown() < BOUND
    wanted = watch.before + 48 * MB
    assert target.settled(wanted) <= wanted
    # It was not replaced by another one.
    assert target.worker.pid == pid
    assert "Traceback" not in target.service.log.read_text()
