import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icis_deploy.errors import IncompatibleError
from icis_deploy.metrics.accuracy import accuracy_of, accuracy_report
from icis_deploy.metrics.outcomes import OUTCOME, OutcomeHead, Outcomes, digests_of, measure_outcomes, merge

NUM_SEEN, NUM_CLASSES, NUM_IMAGES = 9, 14, 60


def head(**changes):
    is_seen = np.arange(NUM_CLASSES) < NUM_SEEN
    values = {
        "class_names": tuple(f"class {each}" for each in range(NUM_CLASSES)),
        "is_seen": is_seen,
        "is_original": is_seen,
        "has_original": True,
        "version": 1,
        "digest": "ab" * 32,
    }
    return OutcomeHead(**{**values, **changes})


def images(seed, num_images=NUM_IMAGES):
    random = np.random.default_rng(seed)
    # Few distinct logits, so that there are ties between classes, and between the leads of images.
    scores = np.round(random.normal(size=(num_images, NUM_CLASSES)), 1).astype(np.float32)
    labels = random.integers(0, NUM_CLASSES, num_images)
    scores[np.arange(num_images), labels] += random.integers(0, 3, num_images)
    return scores, labels, tuple(f"folder/{each}.jpg" for each in range(num_images))


def measured(scores, labels, keys, the_head=None):
    the_head = head() if the_head is None else the_head
    original = np.where(the_head.is_original, scores, -np.inf)
    return measure_outcomes(scores, labels, the_head, keys=keys, original_scores=original)


def report_bytes(outcomes):
    return json.dumps(accuracy_of(outcomes, max_seen_loss=0.02).to_json()).encode()


@settings(max_examples=40)
@given(seed=st.integers(0, 1000), data=st.data())
def test_any_partition_in_any_order_gives_the_same_bytes(seed, data):
    scores, labels, keys = images(seed)
    whole = merge([measured(scores, labels, keys)])
    order = np.array(data.draw(st.permutations(range(NUM_IMAGES))))
    cuts = sorted(data.draw(st.sets(st.integers(1, NUM_IMAGES - 1), max_size=8)))
    parts = [
        measured(scores[chosen], labels[chosen], [keys[each] for each in chosen]) for chosen in np.split(order, cuts)
    ]
    # Parts that were put together before are put together with others, as from several machines.
    split = data.draw(st.integers(0, len(parts) - 1))
    again = merge([*parts[:split], merge(parts[split:])])

    assert again.rows.tobytes() == whole.rows.tobytes()
    assert report_bytes(again) == report_bytes(whole)


def test_the_figures_are_those_of_the_logits():
    scores, labels, keys = images(3)
    of_logits = accuracy_report(
        scores,
        labels,
        seen=NUM_SEEN,
        original_logits=scores[:, :NUM_SEEN],
        class_names=head().class_names,
        max_seen_loss=0.02,
    ).to_json()
    of_outcomes = accuracy_of(merge([measured(scores, labels, keys)]), max_seen_loss=0.02).to_json()

    # Images come in another order, so sums of fractions may differ in the last bit.
    assert of_outcomes["crossings"] == of_logits["crossings"]
    for name in ("T", "U", "S", "H", "S_original", "AUSUC"):
        assert of_outcomes[name] == pytest.approx(of_logits[name], abs=1e-14)
    assert of_outcomes["class_accuracy"] == of_logits["class_accuracy"]
    assert of_outcomes["top5"] == pytest.approx(of_logits["top5"], abs=1e-14)


def test_an_image_that_comes_twice_is_refused_and_named():
    scores, labels, keys = images(0)
    one = measured(scores, labels, keys)
    again = measured(scores[7:8], labels[7:8], keys[7:8])

    with pytest.raises(IncompatibleError, match=r"1 images come more than once, such as 'folder/7\.jpg'") as caught:
        merge([one, again], keys=iter(keys))
    assert caught.value.found == "folder/7.jpg"


def test_an_image_that_comes_twice_in_one_part_is_refused():
    scores, labels, keys = images(0)

    with pytest.raises(IncompatibleError, match="59 images come more than once"):
        merge([measured(scores, labels, ["same"] * len(keys))])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"class_names": tuple(f"other {each}" for each in range(NUM_CLASSES))}, "classes, or others"),
        ({"is_seen": np.arange(NUM_CLASSES) < NUM_SEEN - 1}, "other unseen classes"),
        ({"is_original": np.arange(NUM_CLASSES) < NUM_SEEN - 1}, "another original model"),
        ({"version": 2}, "versions 1 and 2"),
        ({"digest": "cd" * 32}, "heads abababababab and cdcdcdcdcdcd"),
    ],
)
def test_outcomes_of_other_heads_are_refused(changes, difference):
    scores, labels, keys = images(0)
    one = measured(scores[:30], labels[:30], keys[:30])
    other = measured(scores[30:], labels[30:], keys[30:], head(**changes))

    with pytest.raises(IncompatibleError, match=difference):
        merge([one, other])


def test_keys_that_are_no_utf8_are_told_apart():
    first, second = digests_of(["caf\udce9.jpg", "caf\udce8.jpg"])

    assert (first != second).any()


def test_a_million_images_take_as_much_memory_as_their_rows_do():
    rows = np.zeros(200_000, dtype=OUTCOME)
    rows["key"] = np.random.default_rng(0).integers(0, 1 << 63, (len(rows), 2))
    parts = [Outcomes(head=head(), rows=part) for part in np.split(rows, 100)]
    tracemalloc.start()
    merge(parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 3 * rows.nbytes
