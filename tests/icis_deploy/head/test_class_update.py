from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from icis_deploy.errors import ClassConflictError, IncompatibleError, UsageError
from icis_deploy.head.class_update import ClassUpdate

BASE = "0123456789abcdef" * 4


def make_update(**changes):
    values = {"base_fingerprint": BASE, "rows": [[1.0, 2.0, 3.0]], "added": ["okapi"]}
    return ClassUpdate(**(values | changes))


def test_rows_belong_to_added_classes_and_then_to_replaced_ones():
    update = make_update(rows=np.eye(3), added=["okapi", "quoll"], replaced=["zebra"], removed=["mule"])

    assert update.class_names == ("okapi", "quoll", "zebra")
    assert update.feature_dim == 2


def test_an_update_may_only_remove_and_still_says_which_width_it_is_for():
    update = make_update(rows=np.empty((0, 5)), added=(), removed=["okapi"])

    assert update.feature_dim == 4
    assert update.class_names == ()


def test_rows_and_provenance_are_copies_and_cannot_be_written_to():
    rows, provenance = np.ones((1, 3), dtype=np.float32), {"method": "icis", "losses": [1.0]}
    update = make_update(rows=rows, provenance=provenance)
    rows[:] = 7
    provenance["method"] = "other"
    provenance["losses"].append(2.0)

    assert update.rows.tolist() == [[1, 1, 1]]
    assert dict(update.provenance) == {"method": "icis", "losses": [1.0]}
    with pytest.raises(ValueError, match="read-only"):
        update.rows[0] = 0
    with pytest.raises(TypeError, match="does not support item assignment"):
        update.provenance["method"] = "other"


def test_updates_are_equal_if_everything_in_them_is():
    assert make_update() == make_update(rows=np.array([[1, 2, 3]]), added=("okapi",))
    for change in (
        {"rows": [[1.0, 2.0, 4.0]]},
        {"added": ["quoll"]},
        {"version": 2},
        {"self_test_seed": 1},
        {"provenance": {"seed": 1}},
        {"expires": datetime(2030, 1, 1, tzinfo=timezone.utc)},
        {"base_fingerprint": BASE[::-1]},
    ):
        assert make_update() != make_update(**change), change


def test_the_expiry_is_kept_in_utc_to_the_second():
    local = datetime(2030, 1, 1, 1, 30, 15, 999999, tzinfo=timezone(timedelta(hours=2)))

    assert make_update(expires=local).expires == datetime(2029, 12, 31, 23, 30, 15, tzinfo=timezone.utc)


def test_other_terms_leave_the_change_as_it_is():
    update = make_update(provenance={"method": "icis"}, self_test_seed=3)
    expires = datetime(2030, 1, 1, tzinfo=timezone.utc)
    signed = update.with_terms(version=7, expires=expires)

    assert signed == make_update(provenance={"method": "icis"}, self_test_seed=3, version=7, expires=expires)
    assert update.version == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"rows": np.eye(2)},
            IncompatibleError,
            r"The class update has 2 rows for 1 added and 0 replaced classes; expected one row for each\.",
        ),
        (
            {"replaced": ["zebra"]},
            IncompatibleError,
            r"The class update has 1 rows for 1 added and 1 replaced classes",
        ),
        ({"rows": [[1.0]]}, IncompatibleError, r"A row of the class update is 1 wide; expected weight and bias\."),
        ({"rows": [1.0]}, IncompatibleError, r"The rows of the class update have shape \(1,\); expected 2 dimensions"),
        ({"rows": [[1.0, np.nan]]}, IncompatibleError, r"The rows of the class update hold nan at \(0, 1\)"),
        (
            {"rows": np.empty((0, 3)), "added": ()},
            ClassConflictError,
            r"The class update changes nothing: it adds, replaces and removes no class\.",
        ),
        ({"removed": ["okapi"]}, ClassConflictError, r"Class 'okapi' is named twice"),
        (
            {"rows": np.eye(3)[:2], "replaced": ["okapi"]},
            ClassConflictError,
            r"Class 'okapi' is named twice \(again at index 1\)",
        ),
        ({"added": [""]}, ClassConflictError, r"Class 0 has an empty name"),
        ({"added": ["\udc00"]}, ClassConflictError, r"Class 0 is named '\\udc00'; a name is a text"),
        (
            {"base_fingerprint": "ab"},
            IncompatibleError,
            r"The class update's base fingerprint is 'ab'; expected 64 hexadecimal digits\.",
        ),
        ({"base_fingerprint": BASE.upper()}, IncompatibleError, r"The class update's base fingerprint is '0123456"),
        (
            {"version": 0},
            IncompatibleError,
            r"The class update has version 0 and self-test seed 0; expected a version of at least 1",
        ),
        (
            {"rows": np.array([[1, 2, 3], [-2e30, 0, 0]], np.float32), "added": ("okapi", "zebra")},
            IncompatibleError,
            r"The row of 'zebra' in the class update holds 2e\+30; with values above 1e\+30 logits overflow float32\.",
        ),
        ({"version": 10**5000}, IncompatibleError, r"The class update's version does not fit into 63 bits\."),
        ({"self_test_seed": -1}, IncompatibleError, r"The class update has version 1 and self-test seed -1"),
        (
            {"expires": datetime(2030, 1, 1)},
            IncompatibleError,
            r"The class update's expiry has no time zone; expected a time in UTC\.",
        ),
        (
            {"provenance": {"loss": float("nan")}},
            IncompatibleError,
            r"The class update's provenance is not plain JSON: Out of range float values",
        ),
        ({"provenance": {"array": np.zeros(2)}}, IncompatibleError, r"The class update's provenance is not plain JSON"),
        ({"provenance": {"name": "\ud800"}}, IncompatibleError, r"The class update's provenance is not plain JSON"),
    ],
)
def test_what_breaks_a_rule_of_updates_is_refused(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make_update(**changes)


@pytest.mark.parametrize("name", ["added", "replaced"])
def test_names_that_rows_belong_to_have_an_order(name):
    with pytest.raises(UsageError, match=f"^`{name}` is a set, which has no order"):
        make_update(**{"rows": np.eye(3)[:2], "added": (), name: {"okapi", "zebra"}})


def test_a_table_of_rows_in_another_order_is_refused():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame(np.eye(3)[:2], index=["okapi", "zebra"])

    with pytest.raises(IncompatibleError, match=r"^The rows of the class update are named \('okapi', 'zebra'\); the"):
        make_update(rows=table, added=("zebra", "okapi"))
    assert make_update(rows=table, added=("okapi", "zebra")).rows[1, 1] == 1


def test_provenance_without_an_end_is_refused():
    endless = {}
    endless["self"] = endless

    with pytest.raises(IncompatibleError, match=r"^The class update's provenance is not plain JSON: Circular"):
        make_update(provenance=endless)


def test_warnings_are_those_of_the_provenance_and_none_where_it_has_none():
    assert make_update(provenance={"warnings": ["a", "b"]}).warnings == ("a", "b")
    assert make_update(provenance={"warnings": 3}).warnings == ()
    assert make_update().warnings == ()
