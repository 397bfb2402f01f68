"""Conversations as the model's own chat template writes them; only what the assistant says is counted by a loss.

Templates seldom mark the assistant's part, so it is found by rendering: of each turn the conversation before it, with the words that
ask for an answer, and the conversation up to its end. What both begin with is where the turn stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from adapruner.data.bos import BosRule
from adapruner.errors import DataError

Message = Mapping[str, Any]
"""``{"role": "user", "content": "..."}``, and whatever else a template reads."""


def check_messages(value: Any, where: str) -> list[Message]:
    """The messages of one conversation.

    Args:
        value: of the row's column.
        where: the row, for messages.

    Raises:
        DataError: if it is no list of messages with ``role`` and ``content`` as text, or the assistant says nothing in it.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        raise DataError(f"{where}: expected messages as a list of objects, got {value!r:.60}; convert it")
    for message in value:
        if not all(isinstance(message.get(name), str) for name in ("role", "content")):
            got = ", ".join(f"{name} {type(item).__name__}" for name, item in message.items())
            raise DataError(f"{where}: expected role and content as text in every message, got {got or 'none'}; convert it")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in value):
        raise DataError(f"{where}: expected an answer of the assistant, got the roles {', '.join(m['role'] for m in value)}; drop the row")
    return value


def text_of(messages: Sequence[Message]) -> str:
    """What is said, without roles and template: the text that stands for a conversation in hashes.

    >>> text_of([{"role": "user", "content": "Greet me."}, {"role": "assistant", "content": "Hello."}])
    'Greet me.\\n\\nHello.'
    """
    return "\n\n".join(message["content"] for message in messages)


def render_conversation(messages: Sequence[Message], tokenizer: Any, where: str, ask: bool = False) -> str:
    """The conversation as the tokenizer's chat template writes it.

    Args:
        messages: of one conversation.
        tokenizer: of Hugging Face, with a chat template.
        where: source and row, for messages.
        ask: with the words that begin an answer at the end.

    Raises:
        DataError: if there is no template, or it refuses the conversation.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(f"{where}: expected a tokenizer with a chat template, got none; give chat: false and a column of text")
    from jinja2 import TemplateError, UndefinedError

    try:
        return str(tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=ask))
    except (TemplateError, TypeError, KeyError, ValueError) as error:  # the first on purpose, the others where something is missing
        system = any(message["role"] == "system" for message in messages) and not isinstance(error, UndefinedError)
        remedy = "put what the system says into the first message of the user" if system else "convert or drop the row"
        raise DataError(f"{where}: expected a conversation that the model's chat template takes, got {str(error)!r}; {remedy}") from None


def encode_conversation(messages: Sequence[Message], tokenizer: Any, where: str, bos: BosRule) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the spans ``[start, end)`` of them that no loss counts: all that the assistant does not say.

    The words that end an answer count, those that begin it do not. Where a template writes an earlier turn otherwise than a last one
    (thoughts that it leaves out, say), what is left of the answer counts, or of a changed one what both ways begin with.

    Raises:
        DataError: as :func:`render_conversation`.
    """
    begin = [] if bos.begins is None else [bos.begins]

    def encode(text: str) -> list[int]:
        return [*begin, *bos.of_text(tokenizer(text, add_special_tokens=False)["input_ids"])]

    whole = render_conversation(messages, tokenizer, where)
    ids = encode(whole)
    answers: list[tuple[int, int]] = []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            start, end = _place(messages, turn, whole, tokenizer, where)
            answers.append((common_prefix(ids, encode(whole[:start])), common_prefix(ids, encode(whole[:end]))))
    edges = [0, *(edge for answer in answers for edge in answer), len(ids)]
    return ids, [(start, end) for start, end in list(pairwise(edges))[::2] if start < end]


def _place(messages: Sequence[Message], turn: int, whole: str, tokenizer: Any, where: str) -> tuple[int, int]:
    """Where an answer stands in the whole conversation as it is written, in characters."""
    try:
        before = render_conversation(messages[:turn], tokenizer, where, ask=True)
    except DataError:
        if turn:
            raise
        before = ""  # a template that wants a message to answer
    start = common_prefix(whole, before)
    if turn + 1 == len(messages):
        return start, len(whole)
    alone, said = render_conversation(messages[: turn + 1], tokenizer, where), messages[turn]["content"].strip()
    here, there = whole.find(said, start), alone.find(said, common_prefix(alone, before))
    if here < 0 or there < 0:  # the template changes what is said
        return start, common_prefix(whole, alone)
    end = here + len(said)
    return start, end + common_prefix(whole[end:], alone[there + len(said) :])


def common_prefix(ids: Sequence[Any], prompt: Sequence[Any]) -> int:
    """With how many equal tokens (or characters) both begin."""
    return next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), min(len(ids), len(prompt)))
