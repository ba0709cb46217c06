"""The tag grammar: how a prompt and documents are written, and how a turn is read.

A protocol is data. The presets in :data:`PROTOCOLS` differ in their tags and prompts only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

from igsearch_env.episode import Document, Segment


@dataclass(frozen=True, slots=True)
class Search:
    """A search. ``span`` holds the characters between the tags, ``end`` the end of the action."""

    query: str
    span: tuple[int, int]
    end: int


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A call of another tool than the search engine.

    Args:
        tool: Its name.
        arguments: Its arguments by name, or the text of its only one.
        text: The arguments as the policy wrote them, stripped.
        span: Characters of the turn that hold them.
        end: End of the action.
    """

    tool: str
    arguments: Mapping[str, Any] | str
    text: str
    span: tuple[int, int]
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. ``span`` holds the characters between the tags, ``end`` the end of the action."""

    text: str
    span: tuple[int, int]
    end: int


@dataclass(frozen=True, slots=True)
class Invalid:
    """A turn without an action that can be carried out, and why.

    ``end`` is the end of an action that says nothing, or None if there is none at all.
    """

    reason: str
    end: int | None = None


Action = Search | ToolUse | Answer | Invalid

CALLS: Final = (Search, ToolUse)
"""What is carried out by a call, for ``isinstance``."""

Place = tuple[int, int]
"""The number of a call in its turn, from 0, and how many calls the turn has."""

ALONE: Place = (0, 1)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a chat template writes around a message to the policy; system text.

    Args:
        end: Ends the policy's turn; left out where the policy has written it itself.
        before: Opens the message.
        after: Closes the message and opens the policy's next turn.
    """

    end: str = ""
    before: str = ""
    after: str = ""


def thought_marks(think: str) -> tuple[str, str]:
    """What opens and what closes a thought: tags, or brackets where the name has them.

    >>> thought_marks("think"), thought_marks("[THINK]")
    (('<think>', '</think>'), ('[THINK]', '[/THINK]'))
    """
    if think.startswith("["):
        return think, f"[/{think[1:]}"
    return f"<{think}>", f"</{think}>"


NO_FRAME = Frame()
_HARMLESS = {"<": "‹", "[": "［"}


@dataclass(frozen=True)
class TagProtocol:
    """Tags and templates.

    Args:
        name: Name of the preset.
        prompt: Template of the first observation; holds ``{question}``.
        search: Tag around a query.
        answer: Tag around an answer.
        documents: Tag around retrieved documents.
        refine: Tag around what the policy extracts from documents, or None if there is none.
        think: Tag around free reasoning, or ``[THINK]`` for a pair of brackets; None if there is
            none. No action is read inside it, nor after it as long as it is not closed.
        document: Template of one document; may hold ``{rank}``, ``{id}``, ``{title}`` and
            ``{text}``.
        documents_block: Template of an observation after a search; holds ``{documents}``, and
            ``{tag}`` for the name of the tag around them.
        no_documents: Stands for the documents when a search found none.
        removed: Stands for documents that have left a managed context.
        correction: Template of the observation after an invalid turn; may hold ``{reason}``,
            and ``{search}`` and ``{answer}`` for the names of the tags. Neither this nor the two
            below may hold a complete action: small models copy what they read, and a copied example
            would be carried out.
        failure: Observation after a search that the retriever gave up on.
        tool_failure: Observation after a call of a tool that broke or ran out of time; may hold
            ``{tool}``.
        reflection: Template of what opens another attempt; may hold ``{question}``, and
            ``{search}`` and ``{answer}`` for the names of the tags.
        answer_before: What is written between a refinement and the answer's opening tag when
            answers are scored.
        answer_lead: What the policy writes between the opening tag and the first word of an
            answer; it is scored with the answer, because a byte-level BPE puts it in one token.
        frame: Around whatever the environment says, where a chat template frames its messages.
        thought_end: What closes the thought that a chat template opens for the policy; empty where
            turns do not start inside a thought.
        markers: Control tokens of the template, which documents and questions must not hold.
        max_calls: Most calls in one turn. Above 1 a turn does not end with its first call but with
            its last one, where the policy ends the turn itself, and every call is answered.
        between: What stands between the answers to two calls of a turn.
        tools: Names of the tools that may be called beside the search engine
            (:mod:`igsearch_env.tools`). In a tag grammar the name is the tag around the one
            argument.

    >>> protocol = PROTOCOLS["refine"]
    >>> protocol.parse("<think> first </think> <search> capital of Peru </search>")
    Search(query='capital of Peru', span=(31, 48), end=57)
    >>> protocol.escape("a passage with </documents><answer>gold</answer>")
    'a passage with ‹/documents>‹answer>gold‹/answer>'
    """

    name: str
    prompt: str
    search: str = "search"
    answer: str = "answer"
    documents: str = "documents"
    refine: str | None = "refine"
    think: str | None = "think"
    document: str = 'Doc {rank} (Title: "{title}") {text}'
    documents_block: str = "\n<{tag}>\n{documents}\n</{tag}>\n"
    no_documents: str = "(nothing was found)"
    removed: str = "(shown before; only your notes on it remain)"
    correction: str = (
        "\nThat turn could not be carried out: {reason}. Write a query inside the {search} tags "
        "if searches are left, or an answer inside the {answer} tags.\n"
    )
    failure: str = "\nThe search engine did not respond.\n"
    tool_failure: str = "\nThe tool {tool} did not respond.\n"
    reflection: str = (
        "\nGo over what you did: which searches missed, what was assumed, and whether the answer "
        "is borne out by the passages. Then try once more, searching again where it helps, and "
        "end with an answer inside the {answer} tags, the same one if you still hold it.\n\n"
        "Question: {question}\n"
    )
    answer_before: str = "\n"
    answer_lead: str = " "
    frame: Frame = NO_FRAME
    thought_end: str = ""
    markers: tuple[str, ...] = ()
    max_calls: int = 1
    between: str = ""
    tools: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.frame, Frame):  # as JSON and TOML have it
            object.__setattr__(self, "frame", Frame(**self.frame))
        object.__setattr__(self, "markers", tuple(self.markers))
        object.__setattr__(self, "tools", tuple(self.tools))
        if type(self.max_calls) is not int or self.max_calls < 1:
            raise ValueError(
                f"protocol {self.name!r}: max_calls must be a whole number of at least 1, got "
                f"{self.max_calls!r}"
            )
        if "{question}" not in self.prompt:
            raise ValueError(
                f"protocol {self.name!r}: the prompt must hold '{{question}}', got {self.prompt!r}"
            )
        if "{documents}" not in self.documents_block:
            raise ValueError(
                f"protocol {self.name!r}: documents_block must hold '{{documents}}', "
                f"got {self.documents_block!r}"
            )

        if len(set(self.tags)) < len(self.tags) or not all(self.tags):
            raise ValueError(
                f"protocol {self.name!r}: the tags must be distinct and not blank, got {self.tags}"
            )
        replies = (
            ("correction", self.correction),
            ("failure", self.failure),
            ("reflection", self.reflection),
        )
        for name, text in replies:
            if self._action.search(self._with_tag_names(text)):
                raise ValueError(
                    f"protocol {self.name!r}: {name} holds a complete action, which a policy may "
                    f"copy and have carried out, got {text!r}; describe the tags in words"
                )
        try:
            self.document.format(rank=1, id="", title="", text="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"protocol {self.name!r}: document may hold {{rank}}, {{id}}, {{title}} and "
                f"{{text}} and no other braces, got {self.document!r}"
            ) from error

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of all tags in use."""
        optional = (tag for tag in (self.refine, self.think) if tag is not None)
        return (self.search, self.answer, self.documents, *optional, *self._tool_tags)

    @property
    def _tool_tags(self) -> tuple[str, ...]:
        """Tags that call a tool."""
        return self.tools

    @cached_property
    def _tags(self) -> str:
        return "|".join(map(re.escape, self.tags))

    @property
    def answer_opening(self) -> str:
        """What stands before an answer when it is scored, the opening tag included.

        A thought that the template has opened is closed without a word in it.
        """
        return f"{self.thought_end or self.answer_before}<{self.answer}>"

    @property
    def actions(self) -> tuple[tuple[str, str], ...]:
        """What opens and what closes each action that ends with a string of its own."""
        tags = (self.search, self.answer, *self._tool_tags)
        return tuple((f"<{tag}>", f"</{tag}>") for tag in tags)

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a turn: what closes an action, of which several calls end none."""
        if self.max_calls > 1:
            return (f"</{self.answer}>",)
        return tuple(closing for _, closing in self.actions)

    @property
    def turn_ends(self) -> tuple[str, ...]:
        """What a chat template writes at the end of a turn, which the policy may write itself."""
        return (self.frame.end.strip(),) if self.frame.end else ()

    @cached_property
    def _action(self) -> re.Pattern[str]:
        actions = "|".join(map(re.escape, (self.search, self.answer, *self._tool_tags)))
        # NUL stands for the text of thoughts, see spoken.
        return re.compile(rf"<({actions})>((?:(?!</?(?:{self._tags})>)[^\0])*)</\1>")

    @cached_property
    def _unsafe(self) -> re.Pattern[str]:
        starts = [rf"<(?=/?\s*(?:{self._tags})\s*>|\|)"]
        starts += [f"{re.escape(mark[0])}(?={re.escape(mark[1:])})" for mark in self.markers]
        return re.compile("|".join(starts), re.IGNORECASE)

    def escape(self, text: str) -> str:
        """Make untrusted text harmless.

        ``<`` of a protocol tag or of ``<|`` becomes ``‹``, and so does the first character of a
        marker (``［`` where it is a bracket).
        """
        return self._unsafe.sub(lambda found: _HARMLESS.get(found.group(), "‹"), text)

    def spoken(self, turn: str) -> str:
        r"""The turn with NUL in place of every character of a thought, so that places stay.

        >>> PROTOCOLS["refine"].spoken("<think> not <answer> a </answer> </think> yes").strip("\0")
        ' yes'
        """
        if self.think is None:
            return turn
        opening, closing = thought_marks(self.think)
        if self.thought_end:  # the template has opened a thought before the turn
            turn = opening + turn
        elif opening not in turn:
            return turn
        thought = rf"{re.escape(opening)}.*?(?:{re.escape(closing)}|\Z)"
        hidden = re.sub(thought, lambda found: "\0" * len(found.group()), turn, flags=re.DOTALL)
        return hidden[len(opening) :] if self.thought_end else hidden

    def ended(self, turn: str) -> bool:
        """Whether one of the stop strings stands in the turn, outside of thoughts.

        Where a turn may hold several calls, it also ends with the last one that is allowed.
        """
        if any(stop in turn for stop in self.stop):
            spoken = self.spoken(turn)
            if any(stop in spoken for stop in self.stop):
                return True
        return self.max_calls > 1 and len(self.parse_turn(turn)) == self.max_calls

    def render_prompt(self, question: str) -> Segment:
        """The first observation for a question."""
        return self._filled(self.prompt, "{question}", question)

    def _filled(self, template: str, place: str, text: str) -> Segment:
        """A template with untrusted text in a place: only the template is the system's."""
        said = Segment(self.escape(text), "user")
        parts: list[Segment] = []
        for piece in template.split(place):
            parts += [Segment(piece, "system"), said]
        shown = tuple(part for part in parts[:-1] if part.text)
        if said not in shown:
            return Segment(template.replace(place, ""), "system")
        return Segment("".join(part.text for part in shown), "system", parts=shown)

    def render_documents(
        self, documents: Sequence[Document], turn: str = "", place: Place = ALONE
    ) -> Segment:
        """The observation after a search.

        Args:
            documents: What was found.
            turn: The policy's turn; a frame depends on how it ends.
            place: Which of the turn's calls it was.
        """
        shown = _shown(tuple(documents), self.document, self.escape)
        return self._result(shown or self.no_documents, turn, place)

    def render_removed(self, turn: str = "", place: Place = ALONE) -> Segment:
        """What stands in place of an observation whose documents have left the context."""
        return self._result(self.removed, turn, place)

    def thoughts(self, turn: str) -> list[tuple[int, int]]:
        """Characters of each closed thought in a turn, with the blanks after it.

        >>> PROTOCOLS["refine"].thoughts("<think> a </think> b")
        [(0, 19)]
        """
        found = re.finditer("\0+", self.spoken(turn))
        closing = thought_marks(self.think)[1] if self.think else ""
        return [
            (one.start(), one.end() + len(turn[one.end() :]) - len(turn[one.end() :].lstrip()))
            for one in found
            if turn[: one.end()].endswith(closing)
        ]

    def render_result(self, text: str, turn: str = "", place: Place = ALONE) -> Segment:
        """The observation after a call of a tool: what it returned, which is untrusted text."""
        return self._result(self.escape(text), turn, place)

    def _result(self, body: str, turn: str, place: Place) -> Segment:
        return self._framed(_in_block(body, self._block), turn, place)

    @cached_property
    def _block(self) -> str:
        return self.documents_block.replace("{tag}", self.documents)

    def render_correction(self, reason: str, turn: str = "", place: Place = ALONE) -> Segment:
        """The observation after a turn, or a call of it, that could not be carried out."""
        return self._framed(self._corrected(reason), turn, place)

    def _corrected(self, reason: str) -> Segment:
        # A reason may quote the policy, or a tool that was called.
        return self._filled(self._with_tag_names(self.correction), "{reason}", reason)

    def render_failure(self, turn: str = "", place: Place = ALONE, tool: str = "") -> Segment:
        """The observation after a search that the retriever gave up on, or a tool that broke."""
        text = self.tool_failure.replace("{tool}", tool) if tool else self.failure
        return self._framed(Segment(text, "system"), turn, place)

    def render_reflection(self, question: str, turn: str = "") -> Segment:
        """What opens another attempt at a question."""
        text = self._with_tag_names(self.reflection)
        return self._framed(self._filled(text, "{question}", question), turn)

    def _with_tag_names(self, text: str) -> str:
        return text.replace("{search}", self.search).replace("{answer}", self.answer)

    def _framed(
        self,
        said: Segment,
        turn: str,
        place: Place = ALONE,
        frame: Frame | None = None,
        between: str | None = None,
    ) -> Segment:
        """What is said, in a frame (that of the protocol, unless another is given).

        The answers to the calls of a turn share one frame, which the first of them opens and the
        last one closes.
        """
        frame = self.frame if frame is None else frame
        between = self.between if between is None else between
        number, calls = place
        # Most grammars have the one object, and comparing fields is slow.
        if (frame is NO_FRAME or frame == NO_FRAME) and not (number and between):
            return said
        written = frame.end and turn.rstrip().endswith(frame.end.strip())
        opening = frame.before if written else frame.end + frame.before
        before = Segment(between if number else opening, "system")
        after = Segment(frame.after if number + 1 == calls else "", "system")
        text = before.text + said.text + after.text
        if said.source == "system" and not said.parts:
            return Segment(text, "system")
        return Segment(text, said.source, parts=(before, *(said.parts or (said,)), after))

    def write_search(self, query: str) -> str:
        """A search for a query, as a policy would write it."""
        return f"{self.thought_end}<{self.search}> {self.escape(query)} </{self.search}>"

    def write_call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """A call of a tool, as a policy would write it.

        Raises:
            ValueError: If the grammar has no such tool, or there is not one argument: a tag holds
                no more.
        """
        if tool not in self.tools or len(arguments) != 1:
            raise ValueError(
                f"protocol {self.name!r} writes calls of {', '.join(self.tools) or 'no tools'} "
                f"with one argument, got {tool!r} with {len(arguments)}"
            )
        (value,) = arguments.values()
        return f"{self.thought_end}<{tool}> {self.escape(str(value))} </{tool}>"

    def write_answer(self, answer: str) -> str:
        """An answer, as a policy would write it."""
        text = f"<{self.answer}>{self.answer_lead}{self.escape(answer)} </{self.answer}>"
        return self.thought_end + text

    def parse(self, turn: str) -> Action:
        """Read the first complete action of a turn; whatever follows it does not count."""
        return self._next(self.spoken(turn), 0) or Invalid("no complete action")

    def parse_turn(self, turn: str) -> tuple[Action, ...]:
        """Read all actions of a turn that count: an answer, or up to ``max_calls`` calls.

        Calls that cannot be carried out are among them as invalid actions. After a call an answer
        does not count: it was written before the result was seen.
        """
        spoken = self.spoken(turn)
        found: list[Action] = []
        while len(found) < self.max_calls:
            action = self._next(spoken, (found[-1].end or 0) if found else 0)
            if action is None or (found and isinstance(action, Answer)):
                break
            found.append(action)
            if isinstance(action, Answer):
                break
        return tuple(found) or (Invalid("no complete action"),)

    def turn_end(self, turn: str, last: Action) -> int | None:
        """How far a turn is kept: to the end of its last action; None for all of it.

        Where several calls are allowed, what ends the turn in a chat template is kept, too: it was
        the policy's choice not to write another call.
        """
        if last.end is None or self.max_calls == 1 or isinstance(last, Answer):
            return last.end
        marks = "|".join(map(re.escape, self.turn_ends))
        closed = re.compile(rf"\s*(?:{marks})").match(turn, last.end) if marks else None
        return closed.end() if closed else last.end

    def _next(self, spoken: str, start: int) -> Action | None:
        """The first complete action from a place on in what :meth:`spoken` returned."""
        match = self._action.search(spoken, start)
        if match is None:
            return None
        tag, text = match.group(1), match.group(2).strip()
        if tag == self.answer:
            kind: Action = Answer(text, match.span(2), match.end())
        elif tag == self.search:
            kind = Search(text, match.span(2), match.end())
        else:
            kind = ToolUse(tag, text, text, match.span(2), match.end())
        if text:
            return kind
        names = {self.answer: "answer", self.search: "query"}
        return Invalid(f"empty {names.get(tag, tag)}", match.end())

    def refinement_end(self, turn: str) -> int:
        """Where the leading refinement block of a turn ends; 0 if there is none.

        The block must open the turn (blanks aside) and close before any action does.
        """
        if (
            self.refine is None
            or self.thought_end
            or not turn.lstrip().startswith(f"<{self.refine}>")
        ):
            return 0
        closing = f"</{self.refine}>"
        at = turn.find(closing)
        # No action holds a closing tag, so one that begins before this one ends before it, too.
        if at < 0 or self._action.search(self.spoken(turn), 0, at):
            return 0
        return at + len(closing)


# The documents of a search are rendered again for its gain, and those of the pool many times.
@lru_cache(2_048)
def _shown(documents: tuple[Document, ...], template: str, escape: Callable[[str], str]) -> str:
    """Documents as they are shown, line by line, made harmless."""
    lines = [
        template.format(rank=rank, id=one.id, title=one.title, text=one.text)
        for rank, one in enumerate(documents, start=1)
    ]
    return escape("\n".join(lines))


@lru_cache(2_048)
def _in_block(body: str, block: str) -> Segment:
    return Segment(block.replace("{documents}", body), "document")


_INSTRUCTIONS = """\
Answer the question at the end. You may consult a search engine as often as you need.
Reason inside <think> and </think> whenever something new is known.
To search, write <search> your query </search>; passages come back inside <documents> and \
</documents>.
Then note what matters in them inside <refine> and </refine>.
Once you know the answer, write it, and nothing else, inside <answer> and </answer>, \
for example <answer> Lima </answer>.

Question: {question}
"""

_BROWSE = """\
Answer the question at the end. You may consult a search engine as often as you need.
Reason inside <think> and </think> whenever something new is known.
To search, write <search> your query </search>; results come back inside <documents> and \
</documents>, perhaps in part. To read all of a document, write its id inside <get_document> and \
</get_document>.
Then note what matters inside <refine> and </refine>.
Once you know the answer, write it, and nothing else, inside <answer> and </answer>, \
for example <answer> Lima </answer>.

Question: {question}
"""

_SEARCH_R1_INSTRUCTIONS = """\
Answer the question at the end. Think inside <think> and </think> every time you learn something.
If knowledge is missing, ask a search engine with <search> query </search>; its best results come \
back between <information> and </information>. You may search as often as you like.
When nothing more is needed, give the answer alone inside <answer> and </answer>, \
for example <answer> Lima </answer>.

Question: {question}
"""

PROTOCOLS: dict[str, TagProtocol] = {
    "refine": TagProtocol(name="refine", prompt=_INSTRUCTIONS),
    "refine-bare": TagProtocol(
        name="refine-bare",
        prompt="question : {question}\n",
        document=" {text}",
        no_documents=" nothing was found",
        correction="\ninvalid : {reason}\n",
        failure="\ninvalid : search failed\n",
        reflection="\nquestion : {question}\n",
        answer_before="",
    ),
    "browse": TagProtocol(
        name="browse",
        prompt=_BROWSE,
        document='Doc {rank} (Id: {id}) (Title: "{title}") {text}',
        tools=("get_document",),
    ),
    "search-r1": TagProtocol(
        name="search-r1",
        prompt=_SEARCH_R1_INSTRUCTIONS,
        documents="information",
        refine=None,
        document="Doc {rank}(Title: {title}) {text}",
        documents_block="\n\n<{tag}>{documents}</{tag}>\n\n",
    ),
}
"""The presets: ``refine`` (default), ``refine-bare`` (for tiny policies), ``browse`` (results with
their ids, and ``get_document``) and ``search-r1``."""
