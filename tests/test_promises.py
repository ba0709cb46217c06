"""What the docs promise of rewards and refusals, sentence by sentence, with the tests of each.

A page that promises something new must name its test here: :func:`test_no_promise_is_without_tests`
finds sentences that say what earns, what is refused and what never happens. The other two tests see
that each sentence still stands on its page and that its tests exist. What a test shows is for its
reader to judge.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY, TRAINERS, OPENRLHF = "tests/igsearch_env", "tests/trainers", "tests/openrlhf"
NOTHING = f"{LIBRARY}/test_nothing_found.py"
POOL = f"{LIBRARY}/gain/test_pool.py::test_rules_and_their_negative_controls"
LOCAL_FAILURE = f"{TRAINERS}/test_update.py::test_a_failed_search_takes_its_episode_out_of_the_loss"
METRIC_FAILURE = (
    f"{LIBRARY}/evaluation/test_metrics.py::"
    "test_a_failed_search_takes_its_rollout_out_of_the_metrics"
)
TRANSCRIPT = f"{LIBRARY}/test_turn.py::test_the_sampled_ids_are_kept_as_they_are"
CREDIT = f"{LIBRARY}/credit"
ENDPOINT = f"{LIBRARY}/test_endpoint.py"

PROMISES: dict[str, dict[str, tuple[str, ...]]] = {
    "README.md": {
        "A GRPO agent turns these gains into advantages on the tokens of the query that earned": (
            f"{CREDIT}/test_ig_search.py::test_tags_and_what_straddles_them_are_not_paid",
            f"{TRAINERS}/test_signal.py::test_the_gradient_is_where_a_shaped_gain_is",
        ),
        "`information_gain_weight=0.3` pays the gains in the scalar reward": (
            f"{LIBRARY}/test_env.py::test_the_shaped_gain_is_paid_in_the_call_that_settles_it",
        ),
        "never backwards": ("tests/test_architecture.py::test_imports_never_go_backwards",),
    },
    "docs/concepts/credit.md": {
        "it pays for turns where most rollouts of a group give no answer": (
            "tests/scripts/test_cheats.py::test_the_published_forms_do_not_keep_them_out",
        ),
        "a search gains only what it adds to its context": (
            f"{LIBRARY}/gain/test_settle.py::test_known_documents_are_left_out_one_by_one",
            "tests/scripts/test_cheats.py::test_no_cheat_earns_more",
        ),
        "A rollout in which a search failed gets 0 and is left out of all statistics.": (
            f"{CREDIT}/test_outcome.py::test_a_failed_rollout_counts_for_nobody",
            f"{CREDIT}/test_ig_search.py::test_a_rollout_with_a_failed_search_is_left_out_whole",
        ),
        "Where there is nothing to compare with, the advantage is 0.": (
            f"{CREDIT}/test_outcome.py::test_equal_outcomes_and_lone_rollouts_get_nothing",
        ),
        "a bridge document that does not name the answer has no gain of its own": (
            f"{LIBRARY}/gain/test_settle.py::test_the_unigram_gain_by_hand",
            f"{CREDIT}/test_ig_options.py::test_return_to_go",
        ),
        "a search has a gain only if it found a document that no earlier search": (
            f"{CREDIT}/test_ig_options.py::test_what_was_found_before_has_no_gain",
        ),
        "the last search of a rollout has no gain": (
            f"{CREDIT}/test_ig_options.py::test_the_last_search_may_have_no_gain",
        ),
        "and at a weight of 0 nothing is scored any more": (
            f"{CREDIT}/test_ig_options.py::test_a_weight_of_0_needs_no_gain",
            f"{TRAINERS}/test_grpo.py::test_nothing_is_scored_once_the_weight_has_come_to_0",
        ),
        "A misspelt name is refused when the class is defined": (
            f"{CREDIT}/test_registry.py::test_a_name_that_would_be_ignored_is_refused",
        ),
        "not even a penalty: a search that finds nothing earns nothing": (
            f"{NOTHING}::test_no_bonus_of_ones_own_reaches_its_query_not_even_a_penalty",
            f"{NOTHING}::test_no_method_credits_its_query",
        ),
    },
    "docs/concepts/environment.md": {
        "Only the first complete action of a turn counts.": (
            f"{LIBRARY}/test_protocol.py::test_what_follows_the_first_action_does_not_count",
        ),
        "A further one is an invalid turn.": (
            f"{LIBRARY}/test_turn.py::test_a_search_too_many_is_invalid_and_not_run",
        ),
        "An invalid turn gets a correction back and costs a turn.": (
            f"{LIBRARY}/test_turn.py::test_invalid",
            f"{LIBRARY}/test_turn.py::test_turns_run_out",
        ),
        "A correction never holds an action that could be carried out as it stands.": (
            f"{LIBRARY}/test_protocol.py::test_of_every_preset",
            f"{LIBRARY}/test_protocol.py::test_of_a_protocol_of_ones_own",
        ),
        "tells a turn that was cut off": (
            f"{ENDPOINT}::test_turns_say_why_they_end",
            f"{ENDPOINT}::test_a_turn_that_a_content_filter_ended_fails_its_question",
            f"{LIBRARY}/evaluation/test_metrics.py::"
            "test_turns_cut_by_length_are_told_apart_from_malformed_ones",
        ),
        "The reward is the outcome of the last attempt": (
            f"{LIBRARY}/test_attempts.py::test_the_last_attempt_is_paid_at_the_end",
        ),
        "Trainers leave that rollout out": (LOCAL_FAILURE, METRIC_FAILURE),
    },
    "docs/concepts/information-gain.md": {
        "A search that found nothing else has no gain.": (
            f"{LIBRARY}/gain/test_settle.py::test_a_document_under_another_id_is_known",
            f"{LIBRARY}/gain/test_settle.py::test_known_in_an_earlier_attempt",
        ),
        "So searching on once the answer is found earns nothing.": (
            f"{LIBRARY}/gain/test_settle.py::test_a_gain_ends_at_the_highest_belief_before",
            "tests/scripts/test_cheats.py::test_no_cheat_earns_more",
        ),
        "documents and the refinement that follows are replaced together": (
            f"{LIBRARY}/gain/test_settle.py::test_documents_and_refinement_are_swapped_together",
        ),
        "It never comes from the same question, never shares a document with the search": (
            POOL,
            f"{LIBRARY}/test_engine.py::test_the_rules_of_the_pool_hold_for_it",
        ),
        "sampled tokens are never tokenised again": (
            TRANSCRIPT,
            f"{LIBRARY}/gain/test_settle.py::test_segments_keep_their_writers_and_the_sampled_ids",
        ),
        "a search whose context exceeds the model's positions has no gain": (
            f"{LIBRARY}/gain/test_settle.py::test_contexts_that_do_not_fit_leave_their_search_open",
        ),
    },
    "docs/concepts/from-search-to-token.md": {
        "This page follows one information gain from the search that earns it": (
            "tests/test_docs.py::test_the_blocks_of_a_page_run_in_order",
        ),
        "A token that reaches over a tag is left out.": (
            f"{LIBRARY}/test_completion.py::test_a_straddling_token_lies_outside",
        ),
        "If both rollouts had failed, GRPO's advantages would be 0 everywhere": (
            f"{CREDIT}/test_ig_search.py::test_without_a_difference_in_outcome_the_gains_alone_teach",
        ),
    },
    "docs/concepts/retrieval.md": {
        "trainers leave the whole rollout out of losses, gains and statistics, and count it": (
            LOCAL_FAILURE,
            f"{LIBRARY}/gain/test_settle.py::"
            "test_a_failed_search_stays_open_whatever_it_is_compared_with",
            f"{OPENRLHF}/test_in_process.py::"
            "test_a_failed_search_takes_its_rollout_out_and_is_counted",
        ),
        "No document is ever made up.": (
            f"{LIBRARY}/retrieval/test_wire.py::"
            "test_another_shape_is_an_error_and_never_an_empty_document",
        ),
        "A retriever of yours says so with `RetrievalError(message, found, refused=places)`.": (
            f"{LIBRARY}/retrieval/test_server.py::test_is_an_invalid_turn_and_the_episode_goes_on",
            f"{LIBRARY}/retrieval/test_server.py::test_is_told_apart_from_those_that_failed",
        ),
        "An empty list means that nothing was found, and the search earns no gain.": (
            f"{NOTHING}::test_there_is_no_gain_and_nothing_is_scored_for_it",
            f"{NOTHING}::test_there_is_no_reward_for_it_and_no_key_in_the_info",
        ),
    },
    "docs/guides/algorithm.md": {
        "the environment pays every search its shaped gain": (
            f"{LIBRARY}/test_env.py::test_the_shaped_gain_is_paid_in_the_call_that_settles_it",
        ),
    },
    "docs/guides/cluster.md": {
        "are refused, and the message says what to do instead": (
            f"{TRAINERS}/test_openrlhf_flags.py::test_what_does_not_fit_is_refused",
            f"{OPENRLHF}/test_program.py::test_what_cannot_go_well_is_refused_before_ray_starts",
        ),
        "Questions beyond the last full": (
            f"{OPENRLHF}/test_program.py::test_questions_are_asked_in_whole_batches",
        ),
        "because they give its place in the data; a change is refused": (
            f"{OPENRLHF}/test_program.py::test_a_folder_keeps_to_one_run",
        ),
        "`train/ig/em` leaves the rollout out.": (
            f"{OPENRLHF}/test_in_process.py::"
            "test_a_failed_search_takes_its_rollout_out_and_is_counted",
        ),
        "nothing is learned; the third one in a row": (
            f"{OPENRLHF}/test_in_process.py::"
            "test_a_step_with_too_many_failures_teaches_nothing_and_a_third_one_ends_the_run",
        ),
    },
    "docs/guides/corpus.md": {
        "Such evidence never comes from the same question and never holds its answer": (POOL,),
    },
    "docs/guides/evaluation.md": {
        "the program says how many, and `--resume` plays them again": (
            f"{LIBRARY}/cli/test_evaluate.py::"
            "test_searches_that_failed_are_counted_and_never_pass_for_a_result",
        ),
        "the evaluation ends, and `--resume` goes on with these": (
            f"{LIBRARY}/cli/test_evaluate.py::"
            "test_a_retriever_that_is_lost_ends_the_run_and_resume_plays_again_what_it_lost",
        ),
        "A question that the server refuses": (
            f"{ENDPOINT}::test_another_refusal_fails_its_question_alone",
            f"{ENDPOINT}::test_a_question_that_something_before_the_server_blocks_fails_alone",
            f"{ENDPOINT}::test_a_turn_that_a_content_filter_ended_fails_its_question",
            f"{LIBRARY}/cli/test_evaluate_endpoint.py::"
            "test_questions_that_are_refused_count_as_not_answered_up_to_a_share",
        ),
        "A server that refuses even a greeting": (
            f"{ENDPOINT}::test_a_server_that_refuses_everything_ends_the_run_at_once",
        ),
        "Turns of refused questions have `stop_reason`": (
            f"{ENDPOINT}::test_a_turn_that_a_content_filter_ended_fails_its_question",
        ),
        "Each is a mean over questions, never over batches": (
            f"{LIBRARY}/cli/test_evaluate_benchmarks.py::"
            "test_exact_match_is_a_mean_over_examples_not_over_batches",
        ),
        "a policy that never learnt the tags has nearly 1": (
            f"{LIBRARY}/evaluation/test_metrics.py::"
            "test_numbers_of_an_episode_are_averaged_within_it",
        ),
    },
    "docs/guides/indexes.md": {
        "It refuses an index that has another number of vectors than": (
            f"{LIBRARY}/retrieval/test_adopting.py::test_what_does_not_belong_together_is_refused",
        ),
        "Vectors that do not fit are refused at the start": (
            f"{LIBRARY}/retrieval/test_vector_device.py::"
            "test_what_does_not_fit_is_refused_with_what_it_needs",
        ),
        '`"topk": 0` is refused here': (
            f"{LIBRARY}/retrieval/test_server.py::test_bad_requests_are_refused_with_a_reason",
        ),
        "An option that the kind of index does not use is refused.": (
            f"{LIBRARY}/cli/test_index.py::test_errors_say_what_to_mend",
            f"{LIBRARY}/retrieval/test_open.py::test_options_of_dense_indexes_are_for_no_other",
        ),
        "Loading refuses": (
            f"{LIBRARY}/retrieval/test_dense.py::test_another_model_is_refused",
            f"{LIBRARY}/retrieval/test_dense.py::test_a_damaged_file_is_found",
            f"{LIBRARY}/retrieval/test_open.py::test_a_fusion_refuses_a_part_that_has_changed",
        ),
    },
    "docs/guides/laboratory.md": {
        "Where they are others, `qualify` and `compare` refuse to go on with the record.": (
            "tests/scripts/test_credit_laboratory.py::"
            "test_a_record_with_another_start_is_refused_before_anything_is_written",
        ),
        "It refuses to start without step 2": (
            "tests/scripts/test_credit_laboratory.py::test_stages_in_order_and_nothing_twice",
        ),
        "It refuses to go on in the same `--out`": (
            "tests/scripts/test_credit_laboratory.py::"
            "test_what_a_comparison_rests_on_is_contents_not_places",
        ),
        "the oracle, which pays for every new gold document": (
            f"{CREDIT}/test_controls.py::test_each_newly_found_passage_pays_its_search",
        ),
    },
    "docs/guides/models.md": {
        "Training refuses another name than that of the grammar which a checkpoint was taught": (
            f"{TRAINERS}/test_setup.py::test_a_checkpoints_own_grammar_is_taken_over",
        ),
        "is refused with what it rendered": (
            "tests/agents/test_templates.py::test_what_cannot_be_told_is_refused_with_the_reason",
        ),
        "state spaces without a cache of transformers (Mamba 2) | refused": (
            "tests/agents/test_model_kinds.py::test_a_model_with_a_memory_of_its_own_is_refused",
        ),
        "Logits that a model has beyond its tokenizer's vocabulary are never sampled.": (
            "tests/agents/test_model_kinds.py::"
            "test_ids_that_the_tokenizer_does_not_know_are_never_sampled",
        ),
    },
    "docs/guides/policy.md": {"Sampled tokens are never tokenised again.": (TRANSCRIPT,)},
    "docs/guides/real-model.md": {
        "vocabulary times tokens never exists whole": (
            f"{TRAINERS}/test_update.py::"
            "test_no_more_logits_are_computed_at_a_time_than_the_settings_say",
            f"{TRAINERS}/test_update.py::"
            "test_cutting_by_tokens_or_recomputing_activations_or_logits_in_parts_changes_no_gradient",
        ),
    },
    "docs/guides/retriever.md": {
        "Trainers leave the whole rollout out of losses, group statistics and metrics": (
            LOCAL_FAILURE,
            METRIC_FAILURE,
            f"{CREDIT}/test_outcome.py::test_a_failed_rollout_counts_for_nobody",
        ),
        "An empty list is no failure: nothing was found, and the search earns no gain.": (
            f"{NOTHING}::test_there_is_no_gain_and_nothing_is_scored_for_it",
            f"{NOTHING}::test_nothing_is_drawn_for_it_and_the_pool_does_not_count_it_as_short",
        ),
        "Counterfactual documents never share an id with what was found.": (
            POOL,
            f"{LIBRARY}/test_engine.py::test_never_the_question_itself_nor_what_it_found",
        ),
        "**Never copied.**": (
            f"{LIBRARY}/test_env.py::test_a_spec_shares_what_is_big",
            f"{LIBRARY}/test_testing.py::test_a_retriever_that_is_copied_is_caught",
        ),
        "a `top_k` that is too large is then refused at the start": (
            f"{LIBRARY}/test_settings.py::test_more_documents_than_the_corpus_has_are_refused",
        ),
    },
    "docs/guides/serving.md": {
        "is a further one refused, with 503": (
            f"{LIBRARY}/retrieval/test_server_connections.py::"
            "test_where_all_connections_work_a_further_one_is_sent_away",
        ),
        "is an error, never a list of empty documents": (
            f"{LIBRARY}/retrieval/test_wire.py::"
            "test_another_shape_is_an_error_and_never_an_empty_document",
            f"{LIBRARY}/retrieval/test_wire.py::"
            "test_nothing_but_blank_passages_for_one_query_of_several_is_an_error",
        ),
        "if a server refuses a batch of queries": (
            f"{LIBRARY}/retrieval/test_http.py::test_a_query_that_breaks_the_server_fails_alone",
        ),
        "they are left out of losses and gains, and counted": (LOCAL_FAILURE, METRIC_FAILURE),
    },
    "docs/guides/training.md": {
        "What is not finite is never saved": (
            f"{TRAINERS}/test_update.py::"
            "test_an_update_that_goes_too_far_ends_the_run_and_is_never_saved",
        ),
        "an unknown key is refused": (
            f"{TRAINERS}/test_config.py::test_what_does_not_fit_is_refused",
            "tests/scripts/test_options.py::"
            "test_a_mistyped_setting_is_refused_before_anything_slow_is_loaded",
        ),
    },
    "igsearch_env/gain/information_gain.py": {
        "a search that found nothing else has no gain": (
            f"{LIBRARY}/gain/test_settle.py::test_known_in_an_earlier_attempt",
        ),
    },
    "igsearch_env/credit/gigpo.py": {
        "A rollout in which a search failed gets 0": (
            f"{CREDIT}/test_gigpo.py::test_a_failed_rollout_counts_for_nobody",
        ),
    },
    "igsearch_env/credit/groups.py": {
        "An episode in which a search failed gets 0": (
            f"{CREDIT}/test_outcome.py::test_a_failed_rollout_counts_for_nobody",
        ),
    },
    "igsearch_env/credit/igpo.py": {
        "A rollout in which a search failed gets 0": (
            f"{CREDIT}/test_igpo.py::test_a_failed_rollout_counts_for_nobody",
        ),
        "it has no reward of its own but shares in later ones": (
            f"{CREDIT}/test_igpo.py::"
            "test_an_invalid_turn_has_no_reward_of_its_own_and_counts_for_nobody",
        ),
    },
    "igsearch_env/credit/mr_search.py": {
        "A rollout in which a search failed gets 0": (
            f"{CREDIT}/test_mr_search.py::test_a_failed_rollout_counts_for_nobody",
        ),
    },
    "igsearch_env/credit/rloo.py": {
        "One in which a search failed gets 0": (
            f"{CREDIT}/test_outcome.py::test_other_baselines_agree_with_plain_loops",
        ),
    },
    "igsearch_env/credit/belief_shift.py": {
        "a search is never punished for a drift downwards": (
            f"{CREDIT}/test_belief_shift.py::test_delta_belief_never_punishes",
        ),
    },
    "igsearch_env/credit/ig_search.py": {
        "the last search of a rollout (not of each attempt) has no gain": (
            f"{CREDIT}/test_ig_options.py::test_the_last_search_may_have_no_gain",
        ),
    },
    "igsearch_env/credit/enabling.py": {
        "E_t is never paid alone": (f"{CREDIT}/test_enabling.py::test_by_hand",),
    },
    "igsearch_env/credit/query_bonus.py": {
        "A rollout in which a search failed gets 0 everywhere.": (
            f"{CREDIT}/test_ig_search.py::test_a_rollout_with_a_failed_search_is_left_out_whole",
        ),
        "A search that found nothing gets no bonus": (
            f"{NOTHING}::test_no_bonus_of_ones_own_reaches_its_query_not_even_a_penalty",
        ),
    },
    "igsearch_env/credit/gdcr.py": {
        "A question without a way gives no bonus.": (
            f"{CREDIT}/test_gdcr.py::test_a_question_without_a_way_learns_as_with_grpo",
        ),
        "If distances were never looked for.": (
            f"{CREDIT}/test_gdcr.py::test_distances_that_nobody_looked_for_are_refused",
        ),
    },
    "igsearch_env/credit/silver_rollouts.py": {
        "Nothing is scored, nothing is annotated and the corpus is not looked at; a group without "
        "a success gives no bonus.": (
            f"{CREDIT}/test_silver_rollouts.py::test_without_a_success_it_is_grpo",
            f"{CREDIT}/test_silver_rollouts.py::test_a_document_is_worth_what_it_was_to_the_siblings",
        ),
    },
    "igsearch_env/credit/silver_chain.py": {
        "A question without a chain gives no bonus": (
            f"{CREDIT}/test_silver_chain.py::test_a_question_without_a_chain_learns_as_with_grpo",
        ),
        "If silver evidence was never looked for.": (
            f"{CREDIT}/test_silver_chain.py::test_silver_that_nobody_looked_for_is_refused",
        ),
    },
    "docs/guides/rewards-and-tools.md": {
        "A call that finds nothing else has no gain.": (
            f"{LIBRARY}/test_several_calls.py::test_what_two_queries_find_counts_once",
        ),
        "It has no gain.": (f"{LIBRARY}/test_tools.py::test_a_result_is_untrusted_text",),
        "OpenRLHF and TRL train on one, and refuse managed contexts.": (
            f"{TRAINERS}/test_managed_context.py::test_one_sequence_is_not_enough",
            f"{TRAINERS}/test_managed_context.py::test_openrlhf_refuses_it",
        ),
        "A judgement that fails is neither 0 nor 1": (
            f"{LIBRARY}/test_judge.py::test_a_failure_is_masked_and_never_0_or_1",
            f"{TRAINERS}/test_judged.py::"
            "test_a_judge_that_always_fails_teaches_nothing_and_ends_the_run",
        ),
        "An answer cannot close its quotation or form a control token.": (
            f"{LIBRARY}/test_judge.py::test_cannot_end_their_quotation",
            f"{LIBRARY}/test_judge.py::test_any_text_is_one_string_of_one_line",
        ),
        "the gain of that search is missing, never 0": (
            f"{LIBRARY}/test_endpoint_scorer.py::test_a_failure_is_a_missing_gain_and_is_counted",
        ),
    },
    "igsearch_env/gain/pool.py": {
        "never returns evidence of the same question, nor evidence that holds a": (POOL,),
    },
    "igsearch_env/vector_env.py": {
        "Loops that never call ``reset`` again": (
            f"{LIBRARY}/test_vector_env.py::test_a_loop_that_never_resets_goes_on_for_ever",
        ),
    },
}
OF_PAGES = re.compile(r"\b(earn(s|ed)?|no gain|pays|refuse[sd]?|never)\b", re.IGNORECASE)
OF_DOCSTRINGS = re.compile(
    r"\b(earns?|no gain|no bonus|no reward|failed gets 0|never)\b", re.IGNORECASE
)
NO_PROMISES = {
    "docs/guides/cluster.md": ("the install itself was never run here",),
    "docs/guides/real-model.md": ("on questions that training never asked",),
}
"""Sentences that tell what was done, or what a command is for."""
PAGES = ["README.md", *(f"docs/{part}" for part in ("concepts", "guides"))]
MODULES = ("credit", "gain", "env.py", "vector_env.py", "engine.py", "turn.py")


def plain(text: str) -> str:
    return " ".join(text.split())


@cache
def page(name: str) -> str:
    return plain((ROOT / name).read_text(encoding="utf-8"))


def sentences(text: str, wanted: re.Pattern[str]) -> list[str]:
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=\s*[-|#*] ?)", text)
    parts = [s for block in blocks for s in re.split(r"(?<=[.;!?])\s+(?=[A-Z`*])", plain(block))]
    return [part for part in parts if wanted.search(part)]


def promises() -> list[tuple[str, str]]:
    """Every sentence that promises something, with the file that it stands in."""
    places = [ROOT / name for name in PAGES]
    files = [file for one in places for file in (one.glob("*.md") if one.is_dir() else [one])]
    found = [
        (str(file.relative_to(ROOT)), sentence)
        for file in files
        for sentence in sentences(file.read_text(encoding="utf-8"), OF_PAGES)
    ]
    for name in MODULES:
        place = ROOT / "igsearch_env" / name
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                    written = sentences(ast.get_docstring(node) or "", OF_DOCSTRINGS)
                    found += [(str(file.relative_to(ROOT)), one) for one in written]
    return found


CASES = [(name, sentence) for name, table in PROMISES.items() for sentence in table]


@pytest.mark.parametrize(("name", "sentence"), CASES, ids=[sentence for _, sentence in CASES])
def test_a_promise_still_stands_and_its_tests_exist(name: str, sentence: str) -> None:
    assert sentence in page(name), "the page says something else now: see that the test still fits"
    for test in PROMISES[name][sentence]:
        file, _, function = test.partition("::")
        assert f"def {function}(" in page(file), f"there is no {test}"


def test_no_promise_is_without_tests() -> None:
    found = promises()
    assert len(found) > 40
    known = {name: (*PROMISES.get(name, {}), *NO_PROMISES.get(name, ())) for name, _ in found}
    lacking = [
        (name, sentence)
        for name, sentence in found
        if not any(one in sentence or sentence in one for one in known[name])
    ]
    assert not lacking, "name the tests of these in PROMISES"


def test_each_cell_of_what_arrives_where_names_a_test_that_exists() -> None:
    text = (ROOT / "docs/extend/index.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^- \[(\d+)\] `(.*)`$", text, flags=re.MULTILINE))
    rows = re.findall(r"^\| (\[.*) \|$", text, flags=re.MULTILINE)
    cells = [cell for row in rows for cell in row.split(" | ")[1:]]
    assert len(cells) == 5 * len(rows) > 40
    used = set()
    for cell in cells:
        number = re.search(r"\[(\d+)\]$", cell)
        assert number or cell.startswith("no"), f"the cell {cell!r} names no test"
        used |= {number[1]} if number else set()
    assert used == set(named)
    for test in named.values():
        file, _, function = test.partition("::")
        assert f"def {function}(" in page(file), f"there is no {test}"
