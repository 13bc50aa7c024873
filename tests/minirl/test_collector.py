"""lasting_imports: the collector waits until the outermost block ends, also after an error, and then passes over what is there."""

import gc
import sys
import weakref

import pytest

from minirl.collector import lasting_imports


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def _unfrozen():
    yield
    gc.unfreeze()


def is_collected() -> bool:
    """Whether cyclic garbage goes away during far more allocations than the collector waits for."""
    garbage = weakref.ref(Cycle())
    kept = [[] for _ in range(20 * gc.get_threshold()[0])]
    return bool(kept) and garbage() is None


def test_nothing_is_collected_inside_the_outermost_block():
    assert is_collected()
    with lasting_imports():
        with lasting_imports():
            assert not is_collected()
        assert not is_collected()
    assert is_collected()


@pytest.mark.parametrize("imports", [True, False])
def test_objects_are_not_looked_at_again_if_something_was_imported(imports, monkeypatch):
    with lasting_imports():
        made = weakref.ref(Cycle())
        if imports:
            monkeypatch.setitem(sys.modules, "a_new_module", None)
    gc.collect()
    assert (made() is not None) == imports


def test_an_error_ends_the_pause():
    with pytest.raises(ValueError, match="broken"), lasting_imports():
        raise ValueError("broken")
    assert gc.isenabled()
