from collections.abc import Iterator

from diffedit_batch.runtime.backlog import MAX_GROUP_ROWS, Backlog, Bundle
from diffedit_batch.schema import EditRequest, ImageRef


def rows(images: str) -> Iterator[tuple[str, EditRequest]]:
    """One row per letter; equal letters are one image."""
    for number, image in enumerate(images):
        yield image, EditRequest(str(number), ("a",), ("b",), image=ImageRef(image))


def drain(backlog: Backlog) -> list[list[list[str]]]:
    """Ids by group by bundle."""
    found = []
    while backlog.peek() is not None:
        bundle = backlog.pop()
        found.append([[request.id for request in group] for group in bundle.groups])
    return found


def test_rows_of_one_image_come_together() -> None:
    [bundle] = drain(Backlog(rows("abcabc"), 100, 1))
    assert bundle == [["0", "3"], ["1", "4"], ["2", "5"]]


def test_every_row_comes_exactly_once() -> None:
    bundles = drain(Backlog(rows("abcdefgh" * 40), 16, 3))
    ids = [i for bundle in bundles for group in bundle for i in group]
    assert sorted(ids, key=int) == [str(i) for i in range(320)]


def test_bundles_shrink_near_the_end_so_that_all_workers_finish_together() -> None:
    images = "".join(chr(i) for i in range(1000, 1064))
    sizes = [sum(map(len, bundle)) for bundle in drain(Backlog(rows(images), 16, 2))]
    assert sizes[0] == 16
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-4:] == [1, 1, 1, 1]


def test_many_edits_of_one_image_are_cut_into_bounded_groups() -> None:
    bundles = drain(Backlog(rows("a" * 80), 16, 1))
    assert [[len(group) for group in groups] for groups in bundles] == [
        [MAX_GROUP_ROWS],
        [MAX_GROUP_ROWS],
        [16],
    ]


def test_rows_are_read_no_further_than_needed() -> None:
    read: list[str] = []

    def endless() -> Iterator[tuple[str, EditRequest]]:
        for number in range(100_000):
            read.append(str(number))
            yield str(number), EditRequest(str(number), ("a",), ("b",))

    backlog = Backlog(endless(), 16, 1)
    assert backlog.peek() is not None
    assert len(read) < 5000


def take(backlog: Backlog) -> Bundle:
    assert backlog.peek() is not None
    return backlog.pop()


def test_a_returned_bundle_goes_out_in_halves_with_new_ones_in_between() -> None:
    backlog = Backlog(rows("abcdefghijkl"), 4, 1)
    backlog.put_back(take(backlog), "a cause")
    bundles = [take(backlog) for _ in range(4)]
    assert [[r.id for [r] in bundle.groups] for bundle in bundles] == [
        ["0", "1"],
        ["4", "5", "6", "7"],
        ["2", "3"],
        ["8", "9", "10", "11"],
    ]
    for bundle in bundles[::2]:
        assert (bundle.num_deaths, bundle.num_deaths_alone, bundle.causes) == (1, 0, ("a cause",))
    assert backlog.peek() is None
    assert not backlog.has_new


def test_a_bundle_that_is_not_charged_comes_back_whole() -> None:
    backlog = Backlog(rows("abcd"), 4, 1)
    backlog.put_back(take(backlog), "node lost", is_charged=False)
    bundle = take(backlog)
    assert (bundle.num_rows, bundle.num_deaths, bundle.num_lost_nodes) == (4, 0, 1)
    backlog.put_back(bundle, "died")
    half = take(backlog)
    assert (half.num_rows, half.num_deaths, half.num_lost_nodes) == (2, 1, 1)
    assert half.causes == ("node lost", "died")


def test_only_deaths_alone_are_charged_to_a_row() -> None:
    """A single row that died beside another bundle may be innocent; from then on it runs alone."""
    backlog = Backlog(rows(""), 4, 1)
    request = EditRequest("0", ("a",), ("b",))
    bundle = Bundle([(request,)])
    charged = []
    for _ in range(4):
        backlog.put_back(bundle, "died")
        bundle = take(backlog)
        charged.append((bundle.num_deaths, bundle.num_deaths_alone))
    assert charged == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_groups_of_an_image_survive_being_halved() -> None:
    backlog = Backlog(rows("aabb"), 100, 1)
    backlog.put_back(take(backlog), "died")
    assert [[r.id for r in group] for group in take(backlog).groups] == [["0", "1"]]
