"""The one error type for a user's mistake."""

import pytest

from dsi.errors import UserError


def test_it_is_a_value_error_and_prints_its_message_alone():
    with pytest.raises(ValueError, match=r"corpus\.jsonl:3: no text; add one") as caught:
        raise UserError("corpus.jsonl:3: no text; add one")
    assert type(caught.value) is UserError
    assert str(caught.value) == "corpus.jsonl:3: no text; add one"
