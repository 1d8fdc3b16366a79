import numpy as np
import pytest

from app.domain import Matrix
from app.engine.lists import scan as scanning
from app.engine.lists.entries import FIELDS, RECORD, Entries, fields
from app.engine.lists.scan import Ranked, Segment, scan
from app.engine.lists.sketching import NO_LIST, Sketcher
from app.engine.lists.space import NOWHERE, distances_to

KEY = bytes(range(32))
D, BITS = 48, 512


def normal(n: int, seed: int = 0, d: int = D) -> Matrix:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


BASES = np.vstack([3 * normal(6, 1), np.zeros((1, D), np.float32)])
SKETCHER = Sketcher(KEY, BASES, BITS)


def numbered(n: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    records = np.zeros(n, FIELDS)
    keys = np.zeros((n, 16), np.uint8)
    keys[:, :4] = np.arange(n, dtype="<u4")[:, None].view(np.uint8)
    records["item_key"] = keys.view("V16").ravel()
    return records


def numbers(ranked: Ranked) -> list[int]:
    keys = fields(ranked.records)["item_key"].tobytes()
    return [int(number) for number in np.frombuffer(keys, "<u4")[::4]]


def sketched(points: Matrix, lists: list[int], nowhere: bool = False) -> Entries:
    of_points = np.array(lists, np.int32)
    made = SKETCHER.sketch(points, of_points, np.full(len(points), nowhere))
    records = numbered(len(points))
    records["length"], records["offset"] = made.lengths, made.offsets
    return Entries(records.view(RECORD), of_points, made.words)


def exact(points: Matrix) -> Entries:
    return Entries(numbered(len(points)).view(RECORD), np.zeros(len(points), np.int32), points)


def around(number: int, n: int, seed: int) -> Matrix:
    points: Matrix = BASES[number] + normal(n, seed)
    return points


def one(entries: Entries, query: Matrix, number: int, first: int, second: int) -> Ranked:
    view = SKETCHER.view(query, np.array([number]))
    return scan(view, query, [Segment(entries, 0)], first_cut=first, second_cut=second)


def test_distances_are_estimated_about_right() -> None:
    points = around(2, 500, 3)
    query = around(2, 1, 4)[0]
    ranked = one(sketched(points, [2] * 500), query, 2, 500, 500)
    true = distances_to(query, points)[numbers(ranked)]
    errors = ranked.distances - true
    assert abs(errors.mean()) < 0.02 * true.mean()
    assert errors.std() < 0.1 * true.mean()


def test_the_second_look_is_better_than_the_first() -> None:
    points, query = around(1, 800, 5), around(1, 1, 6)[0]
    true = set(np.argsort(distances_to(query, points))[:20].tolist())
    entries = sketched(points, [1] * 800)
    view = SKETCHER.view(query, np.array([1]))
    rough = scanning._rough_distances(view, scanning._gathered([Segment(entries, 0)]))
    by_bits = set(np.argsort(rough, kind="stable")[:40].tolist())
    by_numbers = set(numbers(one(entries, query, 1, 800, 40)))
    assert len(by_numbers & true) > len(by_bits & true)
    assert len(by_numbers & true) >= 18


def test_what_the_first_cut_leaves_out_is_not_looked_at_again() -> None:
    points, query = around(1, 400, 7), around(1, 1, 8)[0]
    entries = sketched(points, [1] * 400)
    few = numbers(one(entries, query, 1, 30, 400))
    assert len(few) == 30
    everything = numbers(one(entries, query, 1, 400, 400))
    assert few == [number for number in everything if number in set(few)]


def test_entries_of_several_lists_are_compared_with_each_other() -> None:
    near, far = around(0, 100, 9), around(3, 100, 10)
    query = BASES[0]
    view = SKETCHER.view(query, np.array([3, 0]))
    both = sketched(np.vstack([near, far]), [0] * 100 + [3] * 100)
    segments = [Segment(both[np.arange(100, 200)], 0), Segment(both[np.arange(100)], 1)]
    ranked = scan(view, query, segments, first_cut=50, second_cut=50)
    assert max(numbers(ranked)) < 100
    mixed = [Segment(both, np.repeat([1, 0], 100))]
    again = scan(view, query, mixed, first_cut=50, second_cut=50)
    assert sorted(numbers(again)) == sorted(numbers(ranked))
    assert (np.diff(again.distances) >= 0).all()


def test_points_are_compared_exactly_whatever_the_cuts() -> None:
    points, query = 1e4 + normal(1_000, 11), 1e4 + normal(1, 12)[0]
    view = SKETCHER.view(query, np.array([0]))
    ranked = scan(view, query, [Segment(exact(points), 0)], first_cut=1, second_cut=10)
    true = np.argsort(distances_to(query, points), kind="stable")[:10]
    assert numbers(ranked) == true.tolist()


def test_points_and_sketches_are_ranked_together() -> None:
    query = np.zeros(D, np.float32)
    view = SKETCHER.view(query, np.array([NO_LIST]))
    near, far = 0.1 * normal(5, 13), normal(50, 14)
    segments = [Segment(sketched(far, [NO_LIST] * 50), 0), Segment(exact(near), 0)]
    ranked = scan(view, query, segments, first_cut=50, second_cut=55)
    assert sorted(numbers(ranked)[:5]) == [0, 1, 2, 3, 4]
    assert ranked.distances[:5] == pytest.approx(np.sort(distances_to(query, near)))


def test_what_is_nowhere_has_its_one_distance() -> None:
    zeros = np.zeros((3, D), np.float32)
    ranked = one(sketched(zeros, [0] * 3, nowhere=True), BASES[0], 0, 3, 3)
    assert ranked.distances.tolist() == [NOWHERE] * 3


def test_a_point_at_the_base_is_found_at_its_own_distance() -> None:
    entries = sketched(BASES[2][None], [2])
    query = BASES[2] + 1
    assert one(entries, query, 2, 1, 1).distances[0] == pytest.approx(D, rel=1e-5)


def test_nothing_to_scan_gives_nothing() -> None:
    view = SKETCHER.view(BASES[0], np.array([0]))
    none = sketched(np.empty((0, D), np.float32), [])
    for segments in ([], [Segment(none, 0)], [Segment(exact(np.empty((0, D), np.float32)), 0)]):
        ranked = scan(view, BASES[0], segments, first_cut=10, second_cut=10)
        assert len(ranked.records) == len(ranked.distances) == 0


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points, query = around(1, 900, 15), around(1, 1, 16)[0]
    entries = sketched(points, [1] * 900)
    view = SKETCHER.view(query, np.array([1]))
    segments = [Segment(entries[np.arange(start, start + 90)], 0) for start in range(0, 900, 90)]
    whole = scan(view, query, segments, first_cut=100, second_cut=40)
    monkeypatch.setattr(scanning, "_BATCH_WORDS", 1_000)
    parts = scan(view, query, segments, first_cut=100, second_cut=40)
    assert numbers(parts) == numbers(whole)
    assert parts.distances == pytest.approx(whole.distances, rel=1e-5)


@pytest.mark.parametrize("bits", [8, 72, 512, 520])
def test_any_number_of_bits_can_be_scanned(bits: int) -> None:
    sketcher = Sketcher(KEY, BASES, bits)
    points = around(0, 50, 17)
    made = sketcher.sketch(points, np.zeros(50, np.int32), np.zeros(50, np.bool_))
    records = numbered(50)
    records["length"], records["offset"] = made.lengths, made.offsets
    entries = Entries(records.view(RECORD), np.zeros(50, np.int32), made.words)
    view = sketcher.view(points[7], np.array([0]))
    ranked = scan(view, points[7], [Segment(entries, 0)], first_cut=50, second_cut=50)
    assert 7 in numbers(ranked)[: 1 if bits > 500 else 25]


def test_sketches_depend_on_the_key() -> None:
    points, lists, nowhere = around(0, 20, 18), np.zeros(20, np.int32), np.zeros(20, np.bool_)
    other = Sketcher(bytes(32), BASES, BITS).sketch(points, lists, nowhere).words
    own = SKETCHER.sketch(points, lists, nowhere).words
    share = np.bitwise_count(own ^ other).sum() / (20 * BITS)
    assert 0.4 < share < 0.6
