from itertools import product

import numpy as np
import pytest

from icis_deploy.demo.world import ATTRIBUTES, DemoClass, World, describe, descriptor_labels, draw_balanced, make_world
from icis_deploy.errors import UsageError


def demo_class(**values: str) -> DemoClass:
    return DemoClass(
        **{"size": "small", "outline": "bare", "texture": "plain", "colour": "red", "shape": "circle", **values}
    )


def num_differences(first: DemoClass, second: DemoClass) -> int:
    return sum(a != b for a, b in zip(first.values, second.values, strict=True))


def test_there_are_at_least_120_classes_and_24_of_them_unseen() -> None:
    world = make_world(seed=0)
    assert len(world.seen) >= 120
    assert len(world.unseen) == 24
    assert not set(world.seen_names) & set(world.unseen_names)


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    assert make_world(seed=3) == make_world(seed=3)
    assert make_world(seed=3) != make_world(seed=4)


@pytest.mark.parametrize("seed", range(5))
def test_every_value_of_an_unseen_class_occurs_in_many_seen_classes(seed: int) -> None:
    world = make_world(seed=seed)
    counts = describe(world.seen).values.sum(axis=0)
    for values in world.descriptors().select(world.unseen_names).values:
        assert counts[values == 1].min() >= 10


@pytest.mark.parametrize("seed", range(5))
def test_every_attribute_is_needed_to_tell_some_seen_classes_apart(seed: int) -> None:
    seen = make_world(seed=seed).seen
    neighbours = [(a, b) for a, b in product(seen, seen) if num_differences(a, b) == 1]
    for attribute in ATTRIBUTES:
        assert any(getattr(a, attribute) != getattr(b, attribute) for a, b in neighbours), attribute


def test_a_name_says_what_a_person_would_say() -> None:
    star = demo_class(size="large", outline="outlined", texture="striped", colour="red", shape="star")
    assert star.name == "large outlined striped red star"
    assert demo_class(colour="blue").name == "small blue circle"


def test_every_combination_has_a_name_of_its_own() -> None:
    names = {DemoClass(**dict(zip(ATTRIBUTES, values, strict=True))).name for values in product(*ATTRIBUTES.values())}
    assert len(names) == np.prod([len(values) for values in ATTRIBUTES.values()])


def test_a_descriptor_has_a_one_for_each_value_of_the_class() -> None:
    descriptors = describe([demo_class(size="large", texture="dotted", colour="green", shape="heart")])
    said = [label for label, value in zip(descriptor_labels(), descriptors.values[0], strict=True) if value]
    assert said == ["size: large", "outline: bare", "texture: dotted", "colour: green", "shape: heart"]
    assert set(np.unique(descriptors.values)) == {0, 1}


def test_descriptors_come_in_the_order_of_the_classes_seen_ones_first() -> None:
    world = make_world(seed=0, num_seen=60, num_unseen=5)
    assert world.descriptors().class_names == (*world.seen_names, *world.unseen_names)


def test_a_balanced_draw_gives_each_value_of_an_attribute_about_as_many_classes() -> None:
    pool = make_world(seed=0, num_seen=500, num_unseen=1).seen
    drawn = describe(draw_balanced(pool, 72, np.random.default_rng(0))).values.sum(axis=0)
    expected = [72 / len(values) for values in ATTRIBUTES.values() for _ in values]
    assert np.abs(drawn - expected).max() <= 2


def test_an_unknown_value_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="No colour is called 'mauve'; the demo knows red, orange"):
        demo_class(colour="mauve")


def test_a_class_that_is_both_seen_and_unseen_is_refused() -> None:
    with pytest.raises(UsageError, match="occurs twice"):
        World(seen=(demo_class(),), unseen=(demo_class(),))


def test_an_unseen_class_with_a_value_that_no_seen_class_has_is_refused() -> None:
    with pytest.raises(UsageError, match="'small blue circle' is blue, and no seen class is"):
        World(seen=(demo_class(),), unseen=(demo_class(colour="blue"),))


@pytest.mark.parametrize(("num_seen", "num_unseen"), [(570, 24), (0, 1), (120, 0)])
def test_an_impossible_number_of_classes_is_refused(num_seen: int, num_unseen: int) -> None:
    with pytest.raises(UsageError, match=f"can make 576 classes; {num_seen} seen and {num_unseen} unseen"):
        make_world(seed=0, num_seen=num_seen, num_unseen=num_unseen)
