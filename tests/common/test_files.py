"""What files say of themselves."""

import pytest

from lowmem_spin.common.files import size_in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0.0 kB"), (99_900, "99.9 kB"), (100_000, "0.1 MB"), (999_900_000, "999.9 MB"), (2_350_000_000, "2.35 GB")],
)
def test_a_size_is_said_in_the_unit_that_people_use(count: int, words: str) -> None:
    assert size_in_words(count) == words
