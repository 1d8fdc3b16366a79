"""Some examples of everything; `make test-long ARGS='-k contract'` sends more than 10,000."""

from tests.contract.fuzz import fuzz, prepare
from tests.service.conftest import Service


def test_every_answer_is_one_that_the_openapi_document_has(own_service: Service) -> None:
    prepare(own_service)
    assert fuzz(own_service, n_examples=4, seed=1) > 500
