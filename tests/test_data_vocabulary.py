"""Words, token ids, and the rule of METHODS 4.2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.vocabulary import END, PADDING, SPECIAL, UNKNOWN, Vocabulary, detokenise, tokenise


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red bird.", ["a", "red", "bird", "."]),
        ("it's white, isn't it?", ["it", "'s", "white", ",", "is", "n't", "it", "?"]),
        ("a long-billed, blue/black bird", ["a", "long-billed", ",", "blue/black", "bird"]),
        ("it is white. it has wings .", ["it", "is", "white", ".", "it", "has", "wings", "."]),
        ("3.5 cm (about)", ["3.5", "cm", "(", "about", ")"]),
        ("the bird's bill", ["the", "bird", "'s", "bill"]),
        ("this\ufffd\ufffdbird, with\ufffd\ufffda tail", ["this", "bird", ",", "with", "a", "tail"]),
        ("   ", []),
        ("", []),
    ],
)
def test_tokens_follow_the_treebank(text: str, words: list[str]) -> None:
    assert tokenise(text) == words


def test_sentences_read_well_again() -> None:
    assert detokenise(tokenise("it's white, isn't it?")) == "it's white, isn't it?"


def test_rare_words_are_unknown_and_frequent_ones_come_first() -> None:
    captions = [["a", "b", "a"]] * 4 + [["c"]] * 3 + [["d"]] * 5
    learned = Vocabulary.learn(captions)
    assert learned.words == (*SPECIAL, "a", "d", "b")
    assert Vocabulary.learn(captions, most=4).words == (*SPECIAL, "a")
    assert learned.encode([["c", "d"]], 5).tolist() == [[UNKNOWN, learned.ids["d"], END, PADDING, PADDING]]
    modality = learned.modality()
    assert (modality.vocabulary, modality.shape) == (6, (32,))
    assert (modality.unknown, modality.padding, modality.end) == (UNKNOWN, PADDING, END)


def test_a_caption_cannot_smuggle_a_special_token_in() -> None:
    assert Vocabulary.learn([["<end>", "<pad>", "word"]] * 9).words == (*SPECIAL, "word")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=50), min_size=1, max_size=5))
def test_encoding_keeps_the_first_31_words_and_always_ends(captions: list[list[str]]) -> None:
    vocabulary = Vocabulary((*SPECIAL, *"abcdefgh"))
    tokens = vocabulary.encode(captions)
    assert tokens.shape == (len(captions), 32)
    for row, words in zip(tokens.tolist(), captions, strict=True):
        at = row.index(END)
        assert [vocabulary.words[i] for i in row[:at]] == words[:31]
        assert set(row[at + 1 :]) <= {PADDING}
        assert vocabulary.decode(row) == " ".join(words[:31])


@pytest.mark.parametrize("words", [("a", "b", "c", "d"), (*SPECIAL, "a", "a")])
def test_a_vocabulary_without_its_special_tokens_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="special tokens"):
        Vocabulary(words)


def test_foreign_ids_print_as_unknown() -> None:
    assert Vocabulary((*SPECIAL, "a")).decode([3, 99, 0, END, 3]) == "a <unk> <unk>"
