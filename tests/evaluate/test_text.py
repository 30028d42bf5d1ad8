import pytest

from harken.evaluate.text import distinct_n, mean_length_words, repetition, words


def test_words_are_lowercase_and_without_punctuation():
    assert words("It isn't GOOD -- it's 'fine', no?") == [
        "it",
        "isn't",
        "good",
        "it's",
        "fine",
        "no",
    ]


def test_words_keep_letters_of_any_script():
    assert words("Überraschung: 映画 ok") == ["überraschung", "映画", "ok"]


def test_distinct_counts_unique_over_all_ngrams_of_the_whole_set():
    texts = ["the film the film", "The film works"]
    # Words: the film the film the film works -> 7 in all, {the, film, works} unique.
    assert distinct_n(texts, 1) == pytest.approx(3 / 7)
    # Bigrams: (the film)(film the)(the film) + (the film)(film works): 5 in all, 3 unique; none
    # spans two texts.
    assert distinct_n(texts, 2) == pytest.approx(3 / 5)


def test_distinct_is_one_when_nothing_repeats_and_small_when_all_texts_are_the_same():
    assert distinct_n(["a b c d"], 2) == 1.0
    # Ten copies of two bigrams: 2 unique of 20.
    assert distinct_n(["a b c"] * 10, 2) == pytest.approx(0.1)


def test_distinct_without_any_ngram_is_zero():
    assert distinct_n([], 1) == 0.0
    assert distinct_n(["", "!?", "one"], 2) == 0.0


def test_repetition_counts_ngrams_that_came_before():
    # "a b" five times: 10 words, 7 four-grams, of which (a b a b) and (b a b a) are unique.
    assert repetition(["a b " * 5]) == pytest.approx(1 - 2 / 7)


def test_repetition_is_averaged_over_texts_and_short_texts_count_zero():
    assert repetition(["a b " * 5, "too short here", "w x y z"]) == pytest.approx((5 / 7) / 3)


def test_repetition_across_texts_is_none_of_its_business():
    assert repetition(["one two three four five"] * 50) == 0.0


def test_repetition_of_no_texts_is_zero():
    assert repetition([]) == 0.0


def test_mean_length_counts_words():
    assert mean_length_words(["a b c", "d.", ""]) == pytest.approx(4 / 3)
    assert mean_length_words([]) == 0.0


@pytest.mark.parametrize("metric", [distinct_n, repetition])
def test_an_ngram_of_no_words_is_refused(metric):
    with pytest.raises(ValueError, match="at least 1 word"):
        metric(["a b"], 0)
