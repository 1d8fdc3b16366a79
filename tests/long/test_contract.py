"""Ten thousand made-up requests, each answered as the OpenAPI document says."""

from tests.contract.fuzz import fuzz, prepare
from tests.service.conftest import Service


def test_every_answer_of_ten_thousand_is_one_that_the_openapi_document_has(
    own_service: Service,
) -> None:
    prepare(own_service)
    n_cases = fuzz(own_service, n_examples=500, seed=1)
    print(f"{n_cases:,} cases")
    assert n_cases >= 10_000
