"""The Perceiver: few latents read many tokens, by cross-attention and self-attention in turn."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head attention of queries over a context, without bias in queries, keys and values."""

    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.dim_head = dim_head
        self.to_query = nn.Linear(width, heads * dim_head, bias=False)
        self.to_key_value = nn.Linear(width, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, width)

    def forward(self, query: torch.Tensor, context: torch.Tensor, key_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) queries, (B, K, D) context, (B, K) bool mask, True for a key to attend to -> (B, N, D)."""
        key, value = self.to_key_value(context).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(
            self.split(self.to_query(query)),
            self.split(key),
            self.split(value),
            attn_mask=None if key_mask is None else key_mask[:, None, None, :],
        )
        out: torch.Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out

    def split(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, heads x dim_head) -> (B, heads, N, dim_head)."""
        return tokens.unflatten(-1, (-1, self.dim_head)).transpose(1, 2)


class FeedForward(nn.Module):
    """GEGLU: the first half of a wide layer times GELU of its second half."""

    def __init__(self, width: int, factor: int = 4) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 2 * factor * width)
        self.narrow = nn.Linear(factor * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        values, gates = self.widen(tokens).chunk(2, dim=-1)
        out: torch.Tensor = self.narrow(values * F.gelu(gates))
        return out


class PerceiverLayer(nn.Module):
    """Cross-attention, feed-forward, self-attention, feed-forward; each with a norm before and a residual around."""

    def __init__(self, width: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dim_head)
        self.cross_feed_norm = nn.LayerNorm(width)
        self.cross_feed_forward = FeedForward(width)
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads, dim_head)
        self.self_feed_norm = nn.LayerNorm(width)
        self.self_feed_forward = FeedForward(width)

    def forward(
        self, latents: torch.Tensor, context: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, N, D) latents, (B, K, D) context, (B, K) bool mask -> (B, N, D)."""
        latents = latents + self.cross_attention(self.cross_norm(latents), self.context_norm(context), key_mask)
        latents = latents + self.cross_feed_forward(self.cross_feed_norm(latents))
        normed = self.self_norm(latents)
        latents = latents + self.self_attention(normed, normed)
        return latents + self.self_feed_forward(self.self_feed_norm(latents))


class Perceiver(nn.Module):
    """`depth` layers in which given latents query given tokens; the latents come from outside, so it can be reused."""

    def __init__(self, width: int, depth: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PerceiverLayer(width, heads, dim_head) for _ in range(depth))

    def forward(
        self, latents: torch.Tensor, context: torch.Tensor, key_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, N, D) latents, (B, K, D) context, (B, K) bool mask, no row of it empty -> (B, N, D)."""
        for layer in self.layers:
            latents = layer(latents, context, key_mask)
        return latents
