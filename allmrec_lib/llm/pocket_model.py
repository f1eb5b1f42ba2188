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

    Layer 0: two heads look one and two places back (rotary positions make that a constant) and note what was there.
    Layer 1: one head looks for places that came after the same token and copies the word there; one fetches what stands
    behind the start token, the user's vector, into the note of layer 0's second head.
    Layer 2: one head looks for places whose note two back (an item token before its title) is like the own note, one for
    places that *are* like the own note (an item token after its title); both copy.
    Found by gradient alone, this takes most of the training on a small machine.
    """
    rotary, content = size // 4, size - size // 4
    attention = [layer.attention for layer in model.gpt_neox.layers]
    weights = [a.query_key_value.weight.view(-1, 3, size, dim) for a in attention]
    outs = [a.dense.weight.view(dim, -1, size) for a in attention]
    biases = [a.query_key_value.bias.view(-1, 3, size) for a in attention]
    reads, notes = (torch.linalg.qr(torch.randn(dim, dim))[0] for _ in range(2))
    parts = [slice(0, size), slice(size, 2 * size)]

    def copies(layer: int, head: int) -> None:
        basis = torch.linalg.qr(torch.randn(dim, dim))[0][:size]
        weights[layer][head, 2], outs[layer][:, head] = basis, basis.T

    for head, distance in ((0, 1), (1, 2)):
        weights[0][head, :2] = 0.0
        weights[0][head, 2], outs[0][:, head] = reads[parts[head]], 0.15 * notes[parts[head]].T
        angle = distance * 10000.0 ** (-torch.arange(rotary // 2) * 2 / rotary)
        strength = (12.0 * size**0.5) ** 0.5
        biases[0][head, 0, :rotary] = strength * torch.cat([angle.cos(), -angle.sin()])
        biases[0][head, 1, : rotary // 2] = strength
    before, own, note = notes[parts[0]][:content], reads[parts[0]][:content], notes[parts[1]][:content]
    embedding = model.get_input_embeddings().weight
    start = F.layer_norm(embedding[0], (dim,))
    weights[1][0, 0], biases[1][0, 0, rotary:] = 0.0, 1.5 * (own @ start)
    weights[1][0, 1, rotary:] = 1.5 * (before - own)
    weights[1][0, 2], outs[1][:, 0] = reads[parts[1]], 0.15 * notes[parts[1]].T
    for head, query, key in ((0, note, note), (1, note, reads[parts[1]][:content]), (2, own, before)):
        weights[2][head, 0, rotary:], weights[2][head, 1, rotary:] = 1.4 * query, 1.4 * key
        copies(2, head)
        if head < 2:
            weights[2][head, 1, rotary:] += before
            biases[2][head, 0, rotary:] = 0.8 * sum(own @ F.layer_norm(embedding[q], (dim,)) for q in quotes)
