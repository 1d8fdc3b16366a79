"""The docs are tried on the service that the service tests run."""

from tests.service import conftest

service = conftest.service
