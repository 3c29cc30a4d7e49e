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


def test_a_returned_bundle_goes_out_first_in_halves() -> None:
    backlog = Backlog(rows("abcdefgh"), 4, 1)
    backlog.peek()
    lost = backlog.pop()
    backlog.put_back(lost)
    halves = []
    for _ in range(2):
        bundle = backlog.peek()
        assert bundle is not None
        assert (bundle.num_deaths, bundle.num_deaths_alone) == (1, 0)
        halves.append([r.id for group in bundle.groups for r in group])
        backlog.pop()
    assert halves == [["0", "1"], ["2", "3"]]


def test_only_deaths_alone_are_charged_to_a_row() -> None:
    """A single row that died beside another bundle may be innocent; from then on it runs alone."""
    backlog = Backlog(rows(""), 4, 1)
    request = EditRequest("0", ("a",), ("b",))
    bundle = Bundle([(request,)])
    charged = []
    for _ in range(4):
        backlog.put_back(bundle)
        assert backlog.peek() is not None
        bundle = backlog.pop()
        charged.append((bundle.num_deaths, bundle.num_deaths_alone))
    assert charged == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_groups_of_an_image_survive_being_halved() -> None:
    backlog = Backlog(rows("aabb"), 100, 1)
    first = backlog.peek()
    assert first is not None
    lost = Bundle([group for bundle in [backlog.pop()] for group in bundle.groups])
    backlog.put_back(lost)
    bundle = backlog.peek()
    assert bundle is not None
    assert [[r.id for r in group] for group in bundle.groups] == [["0", "1"]]
