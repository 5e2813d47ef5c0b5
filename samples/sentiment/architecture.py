"""The sentiment model: a BERT encoder in plain torch, mean pooling and a linear head.

`Encoder` is the architecture of Devlin et al. 2018 (https://arxiv.org/abs/1810.04805) in the size
of MiniLM-L6-H384 (Wang et al. 2020, https://arxiv.org/abs/2002.10957). Its attribute names are
those of the published checkpoint, so that `load_state_dict(strict=True)` proves the two agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """The dimensions of an encoder; the defaults are those of MiniLM-L6-H384."""

    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2
    hidden: int = 384
    intermediate: int = 1536
    heads: int = 12
    layers: int = 6
    layer_norm_epsilon: float = 1e-12
    dropout: float = 0.1


class Embeddings(nn.Module):
    """Token ids [batch, sequence] to vectors [batch, sequence, hidden]."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the three tables; every token has type 0, the type of a single sentence."""
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.hidden)
        self.token_type_embeddings = nn.Embedding(sizes.token_types, sizes.hidden)
        self.LayerNorm = nn.LayerNorm(sizes.hidden, sizes.layer_norm_epsilon)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Sum of the word, position and type embeddings, normalised."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        total = (
            self.word_embeddings(input_ids)
            + self.position_embeddings(positions)
            + self.token_type_embeddings.weight[0]
        )
        embedded: Tensor = self.dropout(self.LayerNorm(total))
        return embedded


class SelfAttention(nn.Module):
    """Scaled dot-product attention of a sequence to itself, in several heads."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the three projections; `hidden` must be a multiple of `heads`."""
        super().__init__()
        self.heads = sizes.heads
        self.query = nn.Linear(sizes.hidden, sizes.hidden)
        self.key = nn.Linear(sizes.hidden, sizes.hidden)
        self.value = nn.Linear(sizes.hidden, sizes.hidden)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, hidden: Tensor, score_bias: Tensor) -> Tensor:
        """Attend; `score_bias` [batch, 1, 1, sequence] is hugely negative where padding is."""
        query = self._split_heads(self.query(hidden))
        key = self._split_heads(self.key(hidden))
        value = self._split_heads(self.value(hidden))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + score_bias
        mixed = self.dropout(scores.softmax(dim=-1)) @ value
        joined: Tensor = mixed.transpose(1, 2).flatten(start_dim=2)
        return joined

    def _split_heads(self, projected: Tensor) -> Tensor:
        """[batch, sequence, hidden] to [batch, heads, sequence, hidden / heads]."""
        batch, sequence, size = projected.shape
        return projected.reshape(batch, sequence, self.heads, size // self.heads).transpose(1, 2)


class ResidualOutput(nn.Module):
    """A projection added to what the block received, then normalised."""

    def __init__(self, input_size: int, sizes: Sizes) -> None:
        """Project `input_size` back to `sizes.hidden`."""
        super().__init__()
        self.dense = nn.Linear(input_size, sizes.hidden)
        self.LayerNorm = nn.LayerNorm(sizes.hidden, sizes.layer_norm_epsilon)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, inner: Tensor, residual: Tensor) -> Tensor:
        """Post-norm residual connection."""
        normalised: Tensor = self.LayerNorm(self.dropout(self.dense(inner)) + residual)
        return normalised


class Attention(nn.Module):
    """Self-attention and its residual output."""

    def __init__(self, sizes: Sizes) -> None:
        """Make both halves; the checkpoint calls them `self` and `output`."""
        super().__init__()
        self.self = SelfAttention(sizes)
        self.output = ResidualOutput(sizes.hidden, sizes)

    def forward(self, hidden: Tensor, score_bias: Tensor) -> Tensor:
        """[batch, sequence, hidden] to the same shape."""
        attended: Tensor = self.output(self.self(hidden, score_bias), hidden)
        return attended


class Intermediate(nn.Module):
    """The widening half of the feed-forward network."""

    def __init__(self, sizes: Sizes) -> None:
        """Widen `hidden` to `intermediate`."""
        super().__init__()
        self.dense = nn.Linear(sizes.hidden, sizes.intermediate)

    def forward(self, hidden: Tensor) -> Tensor:
        """Project and apply the exact (error function) GELU."""
        return functional.gelu(self.dense(hidden))


class Layer(nn.Module):
    """One transformer block: attention, then the feed-forward network."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the block's three parts."""
        super().__init__()
        self.attention = Attention(sizes)
        self.intermediate = Intermediate(sizes)
        self.output = ResidualOutput(sizes.intermediate, sizes)

    def forward(self, hidden: Tensor, score_bias: Tensor) -> Tensor:
        """[batch, sequence, hidden] to the same shape."""
        attended = self.attention(hidden, score_bias)
        transformed: Tensor = self.output(self.intermediate(attended), attended)
        return transformed


class LayerStack(nn.Module):
    """The blocks in order; a module of its own because the checkpoint says `encoder.layer`."""

    def __init__(self, sizes: Sizes) -> None:
        """Make `sizes.layers` blocks."""
        super().__init__()
        self.layer = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))


class Pooler(nn.Module):
    """BERT's first-token projection: in the checkpoint, so loaded, but mean pooling replaces it."""

    def __init__(self, sizes: Sizes) -> None:
        """Hold the projection, unused."""
        super().__init__()
        self.dense = nn.Linear(sizes.hidden, sizes.hidden)


class Encoder(nn.Module):
    """Token ids to one vector per token."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the parts under the checkpoint's names."""
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = LayerStack(sizes)
        self.pooler = Pooler(sizes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """INT64 [batch, sequence] twice to FP32 [batch, sequence, hidden]."""
        hidden: Tensor = self.embeddings(input_ids)
        # subtle: -1e9 and not -inf, for a row that is all padding would be NaN with -inf.
        score_bias = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e9
        for layer in self.encoder.layer:
            hidden = layer(hidden, score_bias)
        return hidden


class SentimentModel(nn.Module):
    """Encoder, mean pooling and a linear head over two classes."""

    def __init__(self, sizes: Sizes) -> None:
        """Make an untrained model; `train.py` loads the encoder and trains the rest."""
        super().__init__()
        self.encoder = Encoder(sizes)
        self.dropout = nn.Dropout(sizes.dropout)
        self.head = nn.Linear(sizes.hidden, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """INT64 [batch, sequence] twice to logits FP32 [batch, 2]: negative, positive."""
        tokens = self.encoder(input_ids, attention_mask)
        logits: Tensor = self.head(self.dropout(mean_pool(tokens, attention_mask)))
        return logits


def mean_pool(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the vectors [batch, sequence, hidden] of the tokens whose mask is 1."""
    weights = attention_mask[:, :, None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
