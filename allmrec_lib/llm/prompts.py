"""Prompts: strings only, no tokenizer and no tensor.

A prompt is a list of *pieces*: text, and slots that a vector takes (a soft token). Titles are pieces of their own, so
that a title is cut into the same tokens in the list and in the answer, and an answer can be followed token by token.

Three templates (Kim et al. 2024, figure 3, and two that are easier for a small LLM; its card says which it wants):

* ``paper``: the user token opens the prompt, each item token comes *after* its title.
* ``item-first``: as ``paper``, each item token *before* its title.
* ``recall``: as ``item-first``, the user token at the very end ("The recommendation for [user] is").
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import NamedTuple


class Slot(NamedTuple):
    """A place for a soft token: ``kind`` is "user" or "item"; ``item`` is the item's id (0 for the user)."""

    kind: str
    item: int = 0


class Title(NamedTuple):
    """A title, tokenised on its own; ``item`` is the item's id."""

    text: str
    item: int


Piece = str | Slot | Title


@dataclass(frozen=True)
class Domain:
    """The words of a domain: "This user has *watched* ... Recommend a *movie* for this user to *watch* next"."""

    done: str
    verb: str
    noun: str


DOMAINS = {
    "movie": Domain("watched", "watch", "movie"),
    "game": Domain("played", "play", "game"),
    "item": Domain("bought", "buy", "item"),
}

USER, ITEM, TITLE, HISTORY, CANDIDATES = "{user}", "{item}", "{title}", "{history}", "{candidates}"


@dataclass(frozen=True)
class Template:
    """``body`` holds {user} {history} {candidates} and the domain's words; ``entry`` holds {title} and {item}."""

    name: str
    body: str
    entry: str


_REQUEST = (
    "This user has {done} {history} in the past. Recommend a {noun} for this user to {verb} next "
    "from the following set of {noun} titles, {candidates}. The recommendation"
)
TEMPLATES = {
    "paper": Template("paper", "{user} is a user representation. " + _REQUEST + ' is "', '"{title}"{item}'),
    "item-first": Template("item-first", "{user} is a user representation. " + _REQUEST + ' is "', '{item}"{title}"'),
    "recall": Template("recall", _REQUEST + ' for {user} is "', '{item}"{title}"'),
}
# Figure 6: LLM-Only and TALLRec see the titles alone.
TEXT_ONLY = Template("text-only", _REQUEST + ' is "', '"{title}"')
ANSWER_END = '"'


def clean_title(text: str, limit: int = 250) -> str:
    """One line, HTML entities unescaped, double quotes made single (they close a title in the prompt)."""
    text = html.unescape(str(text)).replace('"', "'")
    return re.sub(r"\s+", " ", text).strip()[:limit].strip()


def _entries(template: Template, items: list[tuple[int, str]]) -> list[Piece]:
    pieces: list[Piece] = []
    for position, (item, title) in enumerate(items):
        if position:
            pieces.append(", ")
        for part in re.split(r"(\{title\}|\{item\})", template.entry):
            if part == TITLE:
                pieces.append(Title(title, item))
            elif part == ITEM:
                pieces.append(Slot("item", item))
            elif part:
                pieces.append(part)
    return pieces


def recommendation_prompt(
    template: Template, domain: Domain, history: list[tuple[int, str]], candidates: list[tuple[int, str]]
) -> list[Piece]:
    """The pieces of one prompt; the answer's title and :data:`ANSWER_END` come next.

    ``history`` and ``candidates`` are (item id, cleaned title) pairs in the order in which they are shown. Neighbouring
    texts are joined, so that the pieces between titles and slots are few and the same in every prompt.
    """
    pieces: list[Piece] = []
    for part in re.split(r"(\{\w+\})", template.body):
        if part == HISTORY:
            pieces += _entries(template, history)
        elif part == CANDIDATES:
            pieces += _entries(template, candidates)
        elif part == USER:
            pieces.append(Slot("user"))
        elif part.startswith("{"):
            pieces.append(getattr(domain, part[1:-1]))
        elif part:
            pieces.append(part)
    return _joined(pieces)


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if type(piece) is str and joined and type(joined[-1]) is str:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def as_text(pieces: list[Piece]) -> str:
    """The prompt as a person reads it: slots shown as [User] and [Item 12]."""
    show = {"user": lambda slot: "[User]", "item": lambda slot: f"[Item {slot.item}]"}
    return "".join(
        show[piece.kind](piece) if isinstance(piece, Slot) else piece.text if isinstance(piece, Title) else piece
        for piece in pieces
    )
