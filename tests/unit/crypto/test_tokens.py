from app.crypto import tokens


def test_item_key_is_deterministic_keyed_and_16_bytes() -> None:
    one = tokens.item_key(b"k" * 32, "item")
    assert len(one) == 16
    assert one == tokens.item_key(b"k" * 32, "item")
    assert one != tokens.item_key(b"l" * 32, "item")
    assert one != tokens.item_key(b"k" * 32, "Item")


def test_item_keys_keep_the_order_of_the_ids() -> None:
    ids = ["b", "a", "b"]
    assert tokens.item_keys(b"k" * 32, ids) == [
        tokens.item_key(b"k" * 32, item_id) for item_id in ids
    ]
