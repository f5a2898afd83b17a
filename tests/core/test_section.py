"""Keys that were set and never read are named; defaults and read ones are not."""

from jaxlm.core.section import Section


class Inner(Section):
    a: int = 1
    b: int = 2


class Outer(Section):
    x: int = 0
    y: int = 0
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()


def test_what_was_set_and_not_read_is_named():
    given = {"x": 5, "y": 0, "inner": {"a": 3, "b": 4}, "items": ({"a": 7}, {"b": 8})}
    outer = Outer.model_validate(given)
    outer.watch()
    assert outer.unread() == ["inner.a", "inner.b", "items.0.a", "items.1.b", "x"]
    assert (outer.x, outer.inner.a, outer.items[1].b) == (5, 3, 8)
    assert outer.unread() == ["inner.b", "items.0.a"]


def test_writing_the_configuration_down_is_not_reading_it():
    outer = Outer(x=5)
    outer.watch()
    outer.model_dump()
    assert outer.unread() == ["x"]


def test_a_copy_remembers_what_was_read():
    outer = Outer.model_validate({"x": 5, "y": 6, "inner": {"a": 3}})
    outer.watch()
    assert outer.x == 5
    copy = outer.model_copy(update={"inner": Inner(b=9)})
    assert copy.y == 6 and copy.unread() == []
    assert Outer(x=5).unread() == []  # never watched
