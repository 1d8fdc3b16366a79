import json

import pytest

from app.engine.profile import Choice, Point, SearchProfile, default_target

DATA = {
    "points": {
        "10": [[4, 40, 0.85, 0.82], [16, 100, 0.96, 0.955], [64, 300, 0.99, 0.985]],
        "100": [[8, 200, 0.84, 0.81], [32, 800, 0.96, 0.95]],
    }
}


def profile(n_lists: int = 128) -> SearchProfile:
    found = SearchProfile.from_json(n_lists, DATA)
    assert found is not None
    return found


@pytest.mark.parametrize("data", [None, {}])
def test_without_measurements_there_is_no_profile(data: dict[str, object] | None) -> None:
    assert SearchProfile.from_json(10, data) is None


def test_what_is_stored_reads_as_what_was_measured() -> None:
    measured = SearchProfile(
        n_lists=64,
        points={10: [Point(4, 40, 0.96, 0.95)]},
        n_items=3_000,
        target=0.95,
        recall=0.96,
        imbalance=1.2,
    )
    stored = json.loads(json.dumps(measured.to_json()))
    assert sorted(stored) == ["imbalance", "n_items", "points", "recall", "target"]
    assert SearchProfile.from_json(64, stored) == measured


def test_a_profile_that_an_older_version_stored_is_read() -> None:
    # Whole numbers where a fraction is meant, no imbalance, and a field that is no longer known.
    old = {**DATA, "n_items": 3_000, "target": 1, "recall": None, "n_queries": 200}
    found = SearchProfile.from_json(128, old)
    assert found is not None
    assert (found.n_items, found.target, found.recall, found.imbalance) == (3_000, 1.0, None, None)
    assert found.points[10][0] == Point(4, 40, 0.85, 0.82)


@pytest.mark.parametrize(
    ("top_k", "target", "choice"),
    [
        (10, 0.8, Choice(4, 40)),
        (10, 0.82, Choice(4, 40)),
        (10, 0.9, Choice(16, 100)),
        (10, 0.95, Choice(16, 100)),
        (10, 0.98, Choice(64, 300)),
        (1, 0.95, Choice(16, 100)),
        (100, 0.95, Choice(32, 800)),
        # Beyond the largest that was measured, everything grows.
        (1_000, 0.95, Choice(48, 8_000)),
        # What no setting was measured to reach gets all lists and the largest pool.
        (10, 0.999, Choice(128, 300)),
        (100, 0.99, Choice(128, 800)),
    ],
)
def test_the_cheapest_setting_that_keeps_the_target_is_chosen(
    top_k: int, target: float, choice: Choice
) -> None:
    assert profile().choice(top_k, target) == choice


def test_between_two_measurements_the_choice_grows() -> None:
    choices = [profile().choice(top_k, 0.95) for top_k in range(10, 101)]
    assert [choice.n_probes for choice in choices] == sorted(choice.n_probes for choice in choices)
    assert [choice.pool for choice in choices] == sorted(choice.pool for choice in choices)


def test_a_higher_target_never_costs_less() -> None:
    choices = [profile().choice(50, target / 100) for target in range(50, 101)]
    assert choices == sorted(choices)


@pytest.mark.parametrize("top_k", [1, 9, 50, 300, 10_000])
def test_the_pool_holds_all_results_and_probes_do_not_exceed_the_lists(top_k: int) -> None:
    choice = profile(40).choice(top_k, 0.98)
    assert choice.pool >= top_k
    assert choice.n_probes <= 40


def test_of_many_results_a_few_more_may_be_missing() -> None:
    assert [default_target(0.95, top_k) for top_k in (1, 10, 100, 1_000)] == pytest.approx(
        [0.95, 0.95, 0.94, 0.94]
    )
    assert 0.94 < default_target(0.95, 30) < 0.95
    assert default_target(1.0, 100) == 1.0
