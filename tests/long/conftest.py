"""The service of this directory's tests is that of `tests/service`."""

from tests.service.conftest import own_service

__all__ = ["own_service"]
