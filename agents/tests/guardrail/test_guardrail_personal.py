"""Personal data and keys: a number counts only where it can be what it claims."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardgate_agents.guardrail.measure import rows_of
from wardgate_agents.guardrail.pii import is_card, is_iban, is_luhn, is_ssn
from wardgate_agents.guardrail.scan import Wanted, inspect_personal
from wardgate_agents.guardrail.secrets import entropy_bits, find_private_keys, looks_random

ALL = Wanted(lambda category: True)


def found(text: str) -> list[tuple[str, str]]:
    return [(one.category, text[one.start : one.end]) for one in inspect_personal(text, ALL)]


@given(st.integers(10**14, 10**15 - 1))
def test_exactly_one_last_digit_passes_luhn(number: int) -> None:
    assert sum(is_luhn(f"{number}{digit}") for digit in range(10)) == 1


@given(st.integers(0, 15), st.integers(0, 9))
def test_luhn_sees_every_single_wrong_digit(place: int, digit: int) -> None:
    right = "4012888888881881"
    wrong = right[:place] + str(digit) + right[place + 1 :]
    assert is_luhn(wrong) == (wrong == right)


def test_a_card_needs_an_issuer_and_a_length() -> None:
    assert is_card("4111111111111111", is_sure=False)
    assert not is_card("1111111111111117", is_sure=False)  # Luhn, and no issuer
    assert not is_card("41111111111111", is_sure=True)  # no Visa has 14
    assert not is_card("0000000000000000", is_sure=True)
    assert not is_card("4222222222222", is_sure=False)  # 13 digits: only where a card is spoken of
    assert is_card("4222222222222", is_sure=True)


@pytest.mark.parametrize("iban", ["DE89370400440532013000", "GB82WEST12345698765432", "NO9386011117947"])
def test_an_iban_has_its_countrys_length_and_check_digits(iban: str) -> None:
    assert is_iban(iban)
    assert not is_iban(iban[:-1])
    assert not is_iban(iban + "0")
    assert not is_iban("XX" + iban[2:])
    for place in range(4, len(iban)):
        if iban[place].isdigit():
            assert not is_iban(iban[:place] + str((int(iban[place]) + 1) % 10) + iban[place + 1 :])


@pytest.mark.parametrize(
    "digits", ["000121234", "666121234", "900121234", "123001234", "123120000", "078051120", "111111111"]
)
def test_numbers_that_the_ssa_gives_to_nobody(digits: str) -> None:
    assert not is_ssn(digits)


def test_a_bare_ssn_needs_a_word_beside_it() -> None:
    assert found("ssn 219098765") == [("ssn", "219098765")]
    assert found("sum 219098765") == []
    assert found("part 509-31-2246") == []


def test_ambiguous_phone_numbers_need_a_word_beside_them() -> None:
    assert found("Tel. 030 23125 014") == [("phone", "030 23125 014")]
    assert found("Nr. 030 23125 014") == []
    assert found("+49 30 23125 014") == [("phone", "+49 30 23125 014")]
    assert found("+999 30 23125 014") == []  # a country code that nobody has
    assert found("order 202-555-0143") == []


def test_a_number_is_found_through_invisible_and_wide_characters() -> None:
    text = "４2４2\u200b424242424242 x"
    assert found(text) == [("credit_card", text[:-2])]


def test_the_key_wins_over_what_looks_like_an_address_around_it() -> None:
    key = "ghp_" + "a8Kd93LmQz72XvBn5RtYw1PcHs6JfGe4UoI0"
    assert found(f"https://{key}@github.com/a/b") == [("api_key", key)]


def test_placeholders_are_no_keys() -> None:
    for text in (
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "api_key = '${API_KEY_FROM_VAULT_1}'",
        "token = get_token_v2('abc', 1)",
    ):
        assert found(text) == []
    assert not looks_random("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1", 3.0)
    assert entropy_bits("") == 0.0
    assert entropy_bits("abcd") == 2.0


def test_a_private_key_is_found_across_windows_and_when_cut_off() -> None:
    begin, end = "-----BEGIN " + "PRIVATE KEY-----\n", "-----END " + "PRIVATE KEY-----"
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n" * 40
    text = "x " * 32_700 + begin + body + end + " y"
    assert found(text) == [("private_key", begin + body + end)]
    cut = found("x " + begin + body + "and more: text")
    assert [category for category, _ in cut] == ["private_key"]
    assert cut[0][1].startswith(begin + body.rstrip())
    assert len(list(find_private_keys(begin * 50))) == 50


def test_a_redacted_text_keeps_no_found_character() -> None:
    """On every labelled text with personal data."""
    from pathlib import Path

    for path in sorted(Path(__file__).parents[3].joinpath("tests/data/guardrail").glob("*.jsonl")):
        for row in rows_of(path):
            for one in inspect_personal(row.text, ALL):
                assert 0 <= one.start < one.end <= len(row.text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.characters(), st.sampled_from("0123456789 -.@()+/=\"'abDEeyJ_")), max_size=300))
def test_no_text_raises_and_findings_are_in_order(text: str) -> None:
    last = 0
    for one in inspect_personal(text, ALL):
        assert last <= one.start < one.end <= len(text)
        last = one.end
