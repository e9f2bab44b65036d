"""Turns of a dialogue from the message formats of chat data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_unlearn.dialogue.dialogue import Role, Turn

__all__ = ["TURN_KEYS", "response_text", "turns_of"]

TURN_KEYS = ("turns", "messages", "conversations", "conversation")
"""Names under which a record holds its messages."""

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "agent"), "assistant"),
}
_PROMPTS = ("system", "developer")
_TOOLS = ("tool", "function", "function_call", "tool_call", "observation", "ipython")
_TEXTS = ("text", "content", "value", "refusal")
_SUCH_AS = 'such as {"role": "user", "content": "Hi"} or {"from": "human", "value": "Hi"}'


def turns_of(messages: Sequence[Any], where: str, response: bool = False) -> tuple[tuple[Turn, ...], int]:
    """The turns of user and assistant, and how many other messages are left out.

    A system prompt before the first turn, calls of tools and their results are not said by either, and are left out.

    Args:
        messages: Messages with ``role`` and ``text`` or ``content``, or with ``from`` and ``value``.
        where: Place in the file, for messages.
        response: Whether the record has a response beside its messages.

    Raises:
        ValueError: If a message has another form or role, holds something other than text, or ``system`` may be the
            name of the assistant.
    """
    turns: list[Turn] = []
    prompts = tools = 0
    for message in messages:
        role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
        if not isinstance(role, str):
            raise ValueError(f"{where}: a turn must have a role and a text, {_SUCH_AS}, but is {_short(message)}.")
        name = role.strip().lower()
        if name in _PROMPTS and not turns:
            prompts += 1
        elif name in _TOOLS or _only_calls(name, message):
            tools += 1
        elif name in _ROLES:
            turns.append(Turn(_ROLES[name], _text(message, where)))
        else:
            hint = (
                " A system prompt may only stand before the first turn; if 'system' is who answers the user, name that "
                "role 'assistant'."
                if name in _PROMPTS
                else " Messages of 'tool' and 'function', and a system prompt at the beginning, are left out."
            )
            raise ValueError(f"{where}: a role must be 'user' or 'assistant', but is {role!r}.{hint}")
    if prompts and not response and not tools and all(turn.role == "user" for turn in turns):
        raise ValueError(
            f"{where} has messages of 'system' and none of the assistant. If 'system' is who answers the user, name "
            "that role 'assistant'; if it is a system prompt, there is no answer to rate."
        )
    return tuple(turns), prompts + tools


def response_text(response: Any, where: str) -> str | None:
    """The text of a response, which is a string or a message.

    Raises:
        ValueError: If it is something else.
    """
    if response is None or isinstance(response, str):
        return response
    if not isinstance(response, Mapping):
        raise ValueError(f"{where}: response must be a string or one message, but is {_short(response)}.")
    return _text(response, where)


def _only_calls(role: str, message: Mapping[str, Any]) -> bool:
    """Whether a message of the assistant calls tools and says nothing."""
    calls = any(message.get(name) for name in ("tool_calls", "function_call"))
    return _ROLES.get(role) == "assistant" and calls and not _content(message)


def _text(message: Mapping[str, Any], where: str) -> str:
    """What a message says; its content may be a string or a list of parts."""
    content = _content(message)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{where}: a turn must have a role and a text, {_SUCH_AS}, but is {_short(message)}.")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(
                f"{where}: a message has a part of type {kind!r}, but a judge reads text only. Leave such dialogues "
                "out, or put a description in place of the part."
            )
        texts.append(text)
    return "\n".join(texts)


def _content(message: Mapping[str, Any]) -> Any:
    return next((message[key] for key in _TEXTS if message.get(key) is not None), None)


def _short(value: Any) -> str:
    return str(value)[:80]
