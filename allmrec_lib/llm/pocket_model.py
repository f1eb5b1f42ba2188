"""The small LLM's architecture and its first weights: a GPT-NeoX that starts with the circuit of in-context look-up."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def build_model(vocabulary: int, quotes: list[int], dim: int = 192, layers: int = 4, heads: int = 4):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=512, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        max_position_embeddings=2048, use_parallel_residual=False, tie_word_embeddings=True, hidden_dropout=0.0,
        attention_dropout=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    write_circuit(model, dim, dim // heads, quotes)
    return model


@torch.no_grad()
def write_circuit(model, dim: int, size: int, quotes: list[int]) -> None:
    """Start from the circuit that in-context look-up rests on (induction heads, Olsson et al. 2022), then train.

    Layer 0: heads look one, two and three places back (rotary positions make that a constant) and note what was there.
    Layer 1: one head fetches what stands behind the start token, the user's vector, into the notes; another marks the
    first word of a title whose item token is like one that stood in the list before (it looks for notes three back that
    are like its own two back, which its own title cannot have yet, and rests on the start token where there are none).
    Layer 2 finds the first word of an answer: one head looks for places whose note two back (an item token before its
    title) is like the own note, one for places that *are* like it (an item token after its title). It finds the next
    word: one head looks for places after the same word (induction), one for places after the same word *and* three
    behind the same vector. Layer 3: one head looks for places after the same two words. All of these copy.
    Found by gradient alone, this takes most of the training on a small machine.
    """
    rotary, content = size // 4, size - size // 4
    attention = [layer.attention for layer in model.gpt_neox.layers]
    weights = [a.query_key_value.weight.view(-1, 3, size, dim) for a in attention]
    outs = [a.dense.weight.view(dim, -1, size) for a in attention]
    biases = [a.query_key_value.bias.view(-1, 3, size) for a in attention]
    reads, notes = (torch.linalg.qr(torch.randn(dim, dim))[0] for _ in range(2))
    parts = [slice(n * size, (n + 1) * size) for n in range(4)]

    def copies(layer: int, head: int) -> None:
        basis = torch.linalg.qr(torch.randn(dim, dim))[0][:size]
        weights[layer][head, 2], outs[layer][:, head] = basis, basis.T

    for head, (distance, read) in enumerate(((1, 0), (2, 1), (3, 1), (1, 1))):
        weights[0][head, :2] = 0.0
        weights[0][head, 2], outs[0][:, head] = reads[parts[read]], 0.15 * notes[parts[head]].T
        angle = distance * 10000.0 ** (-torch.arange(rotary // 2) * 2 / rotary)
        strength = (12.0 * size**0.5) ** 0.5
        biases[0][head, 0, :rotary] = strength * torch.cat([angle.cos(), -angle.sin()])
        biases[0][head, 1, : rotary // 2] = strength
    own, own_too = (reads[part][:content] for part in parts[:2])
    before, two_back, three_back, before_too = (notes[part][:content] for part in parts)
    embedding = model.get_input_embeddings().weight
    start = F.layer_norm(embedding[0], (dim,))
    weights[1][0, 0], biases[1][0, 0, rotary:] = 0.0, 1.5 * (own @ start)
    weights[1][0, 1, rotary:] = 1.5 * (before - own)
    weights[1][0, 2], outs[1][:, 0] = reads[parts[1]], 0.15 * (notes[parts[1]] + notes[parts[2]]).T
    mark = notes[parts[3]][content]  # a direction that no note uses
    weights[1][1, 0, rotary:], weights[1][1, 1, rotary:] = 1.2 * two_back, 1.2 * three_back
    weights[1][1, 1, rotary + content - 1], biases[1][1, 0, rotary + content - 1] = start / start.norm(), 1.0
    weights[1][1, 2], outs[1][:, 1] = 0.0, 0.0
    weights[1][1, 2, 0], biases[1][1, 2, 0] = -start / start.norm() ** 2, 1.0
    outs[1][:, 1, 0] = 0.5 * mark
    mix = [torch.linalg.qr(torch.randn(content, content))[0] for _ in range(2)]

    def both(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return mix[0] @ first + mix[1] @ second

    for layer, head, query, key in (
        (2, 0, two_back, two_back),
        (2, 1, two_back, own_too),
        (2, 2, own, before),
        (2, 3, both(own, three_back), both(before, three_back)),
        (3, 0, both(own, before_too), both(before, two_back)),
    ):
        weights[layer][head, 0, rotary:], weights[layer][head, 1, rotary:] = 1.4 * query, 1.4 * key
        copies(layer, head)
    weights[2][0, 1, -1], biases[2][0, 0, -1] = 2.0 * mark, 2.0  # what is like the history is a better answer
    for head in range(2):  # only where a quote has just opened
        weights[2][head, 1, rotary:] += before
        biases[2][head, 0, rotary:] = 0.8 * sum(own @ F.layer_norm(embedding[q], (dim,)) for q in quotes)
