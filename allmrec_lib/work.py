"""What a step of each model computes, in FLOPs, from the models' shapes."""

from __future__ import annotations

from dataclasses import dataclass

ENCODERS = {"all-MiniLM-L6-v2": (6, 384), "nq-distilbert-base-v1": (6, 768)}  # layers, hidden


@dataclass(frozen=True)
class Shape:
    """A decoder-only LLM: ``block`` parameters a layer, ``width`` of all attention heads together."""

    name: str
    layers: int
    hidden: int
    width: int
    block: int
    vocabulary: int
    embedding: int

    @property
    def parameters(self) -> int:
        return self.layers * self.block + self.vocabulary * self.embedding

    def forward(self, tokens: float) -> float:
        """FLOPs of the layers for one prompt; attention looks back only."""
        return self.linear(tokens) + self.attention(tokens)

    def linear(self, tokens: float) -> float:
        return 2.0 * self.layers * self.block * tokens

    def attention(self, tokens: float) -> float:
        return 2.0 * self.layers * self.width * tokens**2

    def head(self, tokens: float) -> float:
        return 2.0 * self.vocabulary * self.embedding * tokens


def _opt(name: str, hidden: int, layers: int, embedding: int) -> Shape:
    return Shape(name, layers, hidden, hidden, 12 * hidden**2, 50272, embedding)


# Zhang et al. 2022, table 1, and the published config.json files; the small LLM's are its own.
LLMS = {shape.name: shape for shape in (
    Shape("pocket", 4, 256, 512, 4 * 256 * 512 + 2 * 256 * 512, 8192, 256),
    _opt("opt-125m", 768, 12, 768), _opt("opt-350m", 1024, 24, 512), _opt("opt-1.3b", 2048, 24, 2048),
    _opt("opt-2.7b", 2560, 32, 2560), _opt("opt-6.7b", 4096, 32, 4096))}  # fmt: skip


def step_flops(llm: Shape, prompt: float, answer: float) -> float:
    """A training row of a frozen LLM: no weight takes a gradient, so that the backward pass costs a forward one again in the
    linear layers and two and a half in attention; logits for the answer alone."""
    return 2 * llm.linear(prompt + answer) + 3.5 * llm.attention(prompt + answer) + 2 * llm.head(answer)


def answer_flops(llm: Shape, prompt: float, answer: float, candidates: int = 20) -> float:
    """An answered row: the prompt once, then the candidates' titles side by side over its cache."""
    read = candidates * max(answer - 2, 1)  # neither the last token nor the closing quote is read
    over_cache = 4.0 * llm.layers * llm.width * read * (prompt + read / 2)
    return llm.forward(prompt) + llm.linear(read) + over_cache + llm.head(read + 1)


def encoder_shape(name: str) -> tuple[int, int]:
    """Layers and hidden size of a sentence encoder; BERT-base's for one that is not known."""
    return ENCODERS.get(name, (12, 768))


def encoder_flops(name: str, train_layers: int | None, tokens: float) -> float:
    """A text forward and backward: a layer that learns costs three times its forward pass, a frozen one nothing."""
    layers, hidden = encoder_shape(name)
    learning = layers if train_layers is None else train_layers
    return 3 * 2.0 * max(learning, 1) * 12 * hidden**2 * tokens
