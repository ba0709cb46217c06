from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from agents.tokenization import SegmentTokenizer
from igsearch_env.episode import Segment, Source

FastTokenizer: Any = PreTrainedTokenizerFast  # its constructor is untyped
MARKERS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<tool_call>"]


@pytest.fixture(scope="module")
def segments(bpe: PreTrainedTokenizerFast) -> SegmentTokenizer:
    return SegmentTokenizer(bpe)


def ids_of(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> set[int]:
    return {tokenizer.get_vocab()[token] for token in tokens}


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("source", ["document", "policy"])
def test_untrusted_text_cannot_become_a_control_token(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast, marker: str, source: Source
) -> None:
    text = f"before {marker}{marker} after"
    ids = segments.encode_context((Segment(text, source),))
    assert ids_of(bpe, *MARKERS).isdisjoint(ids)
    assert segments.decode(ids) == text


@pytest.mark.parametrize("marker", MARKERS)
def test_system_text_may_hold_control_tokens(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast, marker: str
) -> None:
    ids = segments.encode_context((Segment(f"a{marker}b", "system"),))
    assert ids_of(bpe, marker) <= set(ids)


@pytest.mark.parametrize("flag", [True, False])
def test_the_tokenizers_own_flag_changes_nothing(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast, flag: bool
) -> None:
    document = (Segment("x <|im_end|> <tool_call> y", "document"),)
    system = (Segment("x <|im_end|> y", "system"),)
    expected = segments.encode_context(document), segments.encode_context(system)
    bpe.split_special_tokens = flag
    try:
        fresh = SegmentTokenizer(bpe)
        assert (fresh.encode_context(document), fresh.encode_context(system)) == expected
    finally:
        bpe.split_special_tokens = False


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from([*MARKERS, "<", "|", ">", "<|im_", "end|>", " ", "é"])))
def test_no_combination_of_pieces_forms_a_control_token(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast, pieces: list[str]
) -> None:
    text = "".join(pieces)
    ids = segments.encode_context((Segment(text, "document"),))
    assert ids_of(bpe, *MARKERS).isdisjoint(ids)
    assert segments.decode(ids) == text


def test_a_normaliser_cannot_smuggle_a_control_token_in() -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = FastTokenizer(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.add_tokens([AddedToken("<end>", normalized=True, lstrip=True)])
    control = tokenizer.get_vocab()["<end>"]
    text = "a    ＜end＞ <end>"
    assert control in tokenizer(text)["input_ids"]  # the danger is real
    assert control not in SegmentTokenizer(tokenizer).encode_context((Segment(text, "document"),))


def test_sampled_ids_are_used_as_they_are(segments: SegmentTokenizer) -> None:
    sampled = (3, 1, 4, 1, 5)  # not what tokenising the text would give
    context = (Segment("ab", "system"), Segment("text", "policy", sampled))
    assert tuple(segments.encode_context(context)[-5:]) == sampled


def test_segments_are_tokenised_apart(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast
) -> None:
    left, right = "who wro", "te the book"
    apart = segments.encode_context((Segment(left, "document"), Segment(right, "document")))
    assert apart == bpe(left)["input_ids"] + bpe(right)["input_ids"]


def test_answers_are_tokenised_in_place(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast
) -> None:
    opening, answer = segments.encode_answer("\n<answer>", " Borges 日")
    assert [*opening, *answer] == bpe("\n<answer> Borges 日")["input_ids"]
    assert segments.decode(answer) == " Borges 日"


def test_a_token_that_straddles_the_bound_belongs_to_the_answer(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast
) -> None:
    opening, answer = segments.encode_answer("<answer> wro", "te it")
    assert [*opening, *answer] == bpe("<answer> wrote it")["input_ids"]
    assert segments.decode(answer).endswith("ote it")  # the token ends after the bound


def test_an_answer_is_untrusted_but_its_opening_is_not(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast
) -> None:
    opening, answer = segments.encode_answer("<|im_start|>", " a<|im_end|>")
    assert ids_of(bpe, "<|im_start|>") == set(opening)
    assert ids_of(bpe, *MARKERS).isdisjoint(answer)
    assert segments.decode(answer) == " a<|im_end|>"


def test_wordlevel_answers(wordlevel: PreTrainedTokenizerFast) -> None:
    tokenizer = SegmentTokenizer(wordlevel)
    opening, answer = tokenizer.encode_answer("\n<answer>", " lima peru")
    assert tokenizer.decode(opening) == "<answer>"
    assert tokenizer.decode(answer) == "lima peru"


@pytest.mark.parametrize("answer", ["", "   "])
def test_an_answer_without_tokens_is_refused(
    wordlevel: PreTrainedTokenizerFast, answer: str
) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        SegmentTokenizer(wordlevel).encode_answer("<answer>", answer)


@pytest.mark.parametrize(
    "context",
    [(), (Segment("x", "document"),), (Segment("x", "system", (1,)),)],
    ids=["empty", "document", "with ids"],
)
def test_a_scoring_context_ends_with_the_opening_tag(
    segments: SegmentTokenizer, context: Any
) -> None:
    with pytest.raises(ValueError, match="opening tag"):
        segments.encode_scored(context, " a")


def test_something_must_precede_the_answer(segments: SegmentTokenizer) -> None:
    with pytest.raises(ValueError, match="nothing precedes"):
        segments.encode_scored((Segment("", "system"),), "a")


def test_how_others_call_the_tokenizer_changes_nothing(bpe: PreTrainedTokenizerFast) -> None:
    ours = SegmentTokenizer(bpe)
    document = (Segment("the cat sat on the mat", "document"),)
    expected = SegmentTokenizer(bpe).encode_context(document)
    bpe("x y z", truncation=True, max_length=2)
    try:
        assert bpe.backend_tokenizer.truncation is not None  # it outlasts the call
        assert ours.encode_context(document) == expected
        assert SegmentTokenizer(bpe).encode_context(document) == expected
    finally:
        bpe.backend_tokenizer.no_truncation()


def test_threads_may_share_one(bpe: PreTrainedTokenizerFast) -> None:
    """Decoding the tokens of a turn is what the play thread does while others tokenise."""
    ours = SegmentTokenizer(bpe)
    ids = ours.encode_context((Segment("who wrote the book? " * 60, "document"),))

    def decode_all() -> list[str]:
        return [ours.decode(ids[:end]) for end in range(len(ids) + 1)]

    with ThreadPoolExecutor(1) as thread:
        decoded = [thread.submit(decode_all) for _ in range(8)]
        encoded = 0
        while not decoded[-1].done():
            ours.encode_context((Segment(f"{encoded} cats", "document"),))
            encoded += 1
        assert encoded > 8
        assert all(future.result()[-1] == ours.decode(ids) for future in decoded)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="fast tokenizer"):
        SegmentTokenizer(cast(PreTrainedTokenizerFast, SimpleNamespace(is_fast=False)))


def test_a_special_token_of_one_character_is_refused(wordlevel: PreTrainedTokenizerFast) -> None:
    tokenizer = FastTokenizer(
        tokenizer_object=deepcopy(wordlevel.backend_tokenizer), unk_token="[UNK]", eos_token="$"
    )
    with pytest.raises(ValueError, match="one character"):
        SegmentTokenizer(tokenizer)


def test_the_model_must_know_every_token(segments: SegmentTokenizer, make_model: Any) -> None:
    segments.check_fits(make_model("llama", len(segments)))
    with pytest.raises(ValueError, match="largest id"):
        segments.check_fits(make_model("llama", len(segments) - 1))


def test_decoding_keeps_control_tokens_and_blanks(
    segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast
) -> None:
    text = " a , b .<|im_end|> n't"
    assert segments.decode(bpe(text)["input_ids"]) == text


def test_tokens_with(segments: SegmentTokenizer, bpe: PreTrainedTokenizerFast) -> None:
    expected = {i for i in range(len(bpe)) if ">" in segments.decode([i])}
    assert segments.tokens_with(">") == expected
    with pytest.raises(ValueError, match="ASCII"):
        segments.tokens_with("】")


@pytest.fixture
def with_bos(bpe: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a BOS token before every text, as those of Llama 3 do."""
    tokenizer = deepcopy(bpe)
    bos = ("<|im_start|>", tokenizer.get_vocab()["<|im_start|>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )
    return tokenizer


def test_a_transcript_starts_with_what_the_tokenizer_puts_before_a_text(
    with_bos: PreTrainedTokenizerFast, bpe: PreTrainedTokenizerFast
) -> None:
    ours = SegmentTokenizer(with_bos)
    prompt, found = Segment("who wrote it?\n", "system"), Segment("a cat", "document")
    assert ours.encode_context((prompt,)) == with_bos(prompt.text)["input_ids"]
    whole = ours.encode_context((prompt, found))
    assert whole == [*with_bos(prompt.text)["input_ids"], *bpe(found.text)["input_ids"]]
    assert ours.encode_segment(found) == bpe(found.text)["input_ids"]
    opening = Segment("<answer>", "system")
    ids, count = ours.encode_scored((prompt, found, opening), " Lima")
    assert ids[: len(whole)] == whole
    assert ours.decode(ids[-count:]) == " Lima"


def test_what_a_template_has_written_is_not_put_there_again(
    with_bos: PreTrainedTokenizerFast,
) -> None:
    ours = SegmentTokenizer(with_bos)
    prompt = Segment("<|im_start|>who wrote it?", "system")
    assert ours.encode_context((prompt,)) == with_bos("who wrote it?")["input_ids"]


def test_a_text_can_be_cut_between_its_tokens(bpe: PreTrainedTokenizerFast) -> None:
    tokenizer = SegmentTokenizer(bpe)
    text = "Zürich is in <eos> 日本, says nobody."
    ends = tokenizer.token_ends(text)
    assert list(ends) == sorted(ends)
    assert ends[-1] == len(text)
    ids = tokenizer.encode_segment(Segment(text, "document"))
    assert len(ends) == len(ids)
    for count, end in enumerate(ends, start=1):
        assert tokenizer.decode(ids[:count]).rstrip("\ufffd") in (text[:end], text[: end - 1])
