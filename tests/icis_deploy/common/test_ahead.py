import threading
import time

import pytest

from icis_deploy.common.ahead import AHEAD, map_ahead


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers):
    def slower_at_first(number):
        time.sleep(0.002 * (number % 3 == 0))
        return number * number

    assert list(map_ahead(slower_at_first, range(40), workers=workers)) == [number**2 for number in range(40)]


@pytest.mark.parametrize("workers", [1, 3])
def test_takes_few_items_before_their_results_are_asked_for(workers):
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), workers=workers)
    for number in range(20):
        assert next(results) == number
        assert len(taken) <= number + 1 + AHEAD * workers


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_where_its_item_was_and_ends_the_threads(workers):
    def fails_at_five(number):
        if number == 5:
            raise ValueError("five")
        return number

    found = []
    with pytest.raises(ValueError, match="five"):
        found.extend(map_ahead(fails_at_five, range(50), workers=workers))

    assert found == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_error_of_the_items_comes_after_the_results_before_it():
    def items():
        yield 1
        raise OSError("half a file")

    with pytest.raises(OSError, match="half a file"):
        list(map_ahead(lambda number: number, items(), workers=2))


def test_whoever_stops_waits_for_what_has_begun_alone():
    begun = []
    results = map_ahead(begun.append, range(1000), workers=2)
    next(results)
    results.close()

    assert len(begun) <= 1 + 2 * AHEAD
