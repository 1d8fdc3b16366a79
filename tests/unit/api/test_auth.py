import pytest

from app.api.around.auth import identify
from app.errors import ApiKeyRejected


@pytest.mark.parametrize("api_key", [None, "", "anything", "schlüssel"])
def test_without_a_root_key_everybody_is_let_in(api_key: str | None) -> None:
    assert identify(api_key, None) is None


def test_the_root_key_is_let_in() -> None:
    assert identify("root", "root") is None


@pytest.mark.parametrize("api_key", [None, ""])
@pytest.mark.parametrize("root_key", ["root", ""])
def test_a_key_is_required(api_key: str | None, root_key: str) -> None:
    with pytest.raises(ApiKeyRejected, match="API Key is required"):
        identify(api_key, root_key)


@pytest.mark.parametrize("api_key", ["roo", "roots", "ROOT", "root ", "röot", "\xff", "None"])
def test_no_other_key_is_let_in(api_key: str) -> None:
    with pytest.raises(ApiKeyRejected, match="Invalid API Key"):
        identify(api_key, "root")
