from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from icis_deploy.runtime.state.origins import (
    Origin,
    brought_back,
    origins_after_update,
    origins_from,
    origins_moved,
    origins_without,
    ranges_of,
    signer_by_column,
)

SIGNERS = st.dictionaries(st.integers(0, 40), st.none() | st.sampled_from(["a", "b", "c"]))


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_the_columns_as_few_as_they_can_be(columns):
    ranges = ranges_of(columns)

    assert Origin("a", ranges).columns == tuple(sorted(columns))
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


@given(SIGNERS)
def test_every_column_keeps_its_signer(signers):
    origins = origins_from(signers)

    assert signer_by_column(origins) == signers
    assert len({origin.signed_by for origin in origins}) == len(origins)


@given(SIGNERS, st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.none() | st.just("z"))
def test_an_update_signs_what_it_writes_and_forgets_what_it_removes(signers, written, staying, signed_by):
    names = [
        "some class" if column in staying | written else None
        for column in range(max(staying | written, default=-1) + 1)
    ]
    after = origins_after_update(origins_from(signers), written=written, after=names, signed_by=signed_by)

    expected = {column: each for column, each in signers.items() if column in staying}
    assert signer_by_column(after) == expected | dict.fromkeys(written, signed_by)
    assert signer_by_column(origins_without(after, written)) == {
        column: each for column, each in expected.items() if column not in written
    }


def test_what_is_in_effect_is_not_brought_back():
    now = origins_from({3: "a", 4: None, 5: "b"})

    assert brought_back(now, now) == frozenset()
    assert brought_back(now, origins_from({3: "a", 5: "a"})) == {"a"}
    assert brought_back(now, origins_from({3: "a", 6: "c", 7: None})) == {"c"}
    assert brought_back((), origins_from({3: "a"})) == {"a"}


def test_a_class_takes_its_origin_to_another_column():
    before = ("cat", "dog", None, "okapi", "zebra")
    after = ("cat", "dog", "zebra", None, None, "okapi")

    moved = origins_moved(origins_from({3: "a", 4: None, 9: "b"}), before, after)
    assert signer_by_column(moved) == {5: "a", 2: None}
