"""What somebody may have meant, and names that are one name under two spellings."""

from __future__ import annotations

import unicodedata

from icis_deploy.common.closest import did_you_mean, respelled

COMPOSED = "Caf\u00e9 bird"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def test_a_name_that_looks_the_same_is_said_to_be_other_characters():
    assert did_you_mean([COMPOSED], [DECOMPOSED]).endswith(
        "? They look alike, but are other characters of Unicode: write both in one form, such as NFC. "
    )
    assert did_you_mean(["okapis"], ["okapi"]) == "Did you mean 'okapi'? "


def test_names_that_differ_in_spelling_alone_are_paired():
    known = ["Great_Grey_Owl", COMPOSED, "C", "crane"]
    names = ["great grey owl", DECOMPOSED, "C++", "great-grey-owl", "barn owl", "Barn_Owl", "\u200bcrane", "---"]

    assert respelled(names, known) == [
        ("great grey owl", "Great_Grey_Owl"),
        (DECOMPOSED, COMPOSED),
        ("great-grey-owl", "Great_Grey_Owl"),
        ("Barn_Owl", "barn owl"),
        ("\u200bcrane", "crane"),
    ]
