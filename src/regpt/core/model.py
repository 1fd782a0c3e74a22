"""GPT-2, exactly: the architecture OpenAI released, in the lecture's names.

Token and learned position embeddings, `n_layer` pre-norm blocks (causal self-attention with one
merged q/k/v matrix, then a tanh-GELU MLP four times as wide), a final LayerNorm, and a head that is
the token embedding again: one matrix, one parameter, one name (`wte.weight`).

    B batch, T time (tokens), C = n_embd channels, nh = n_head heads, hs = C / nh head size, V vocab

State-dict names equal the released checkpoint's, so `weights/` only has to turn the Conv1D
matrices round. Everything that is not the architecture acts on the model from outside: the loss
that never holds all logits (`loss.py`), the key-value cache (owned by the caller, passed as
`cache`), packed weights, compilation, sharding. `hidden` and `unembed` are the seams for them.

Initialisation follows GPT-2 as the lecture does: N(0, 0.02) for every matrix and embedding, the
residual projections divided by sqrt(2 * n_layer), zero biases. (OpenAI's code drew the position
embedding with 0.01: openai/gpt-2, src/model.py.) Every tensor is drawn once.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from regpt.system.errors import UserError

if TYPE_CHECKING:
    from regpt.core.kv_cache import KeyValueCache

MOST_LAYERS, LARGEST_SIZE = 1024, 1 << 24


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a GPT-2; the defaults are the 124M model's."""

    block_size: int = 1024
    """Positions in the table: the longest sequence the model can read, in tokens."""
    vocab_size: int = 50257
    """Rows of the token embedding: 50,000 merges + 256 bytes + end-of-text."""
    n_layer: int = 12
    """Blocks."""
    n_head: int = 12
    """Attention heads per block; must divide n_embd."""
    n_embd: int = 768
    """Channels."""
    dropout: float = 0.0
    """Dropout on embeddings, attention weights and residual branches, in training only."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in every LayerNorm."""

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")
            most = MOST_LAYERS if name == "n_layer" else LARGEST_SIZE
            if getattr(self, name) > most:  # a damaged config.json would be built for hours
                raise UserError(f"model.{name} must be at most {most}, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd {self.n_embd} is not a multiple of model.n_head {self.n_head}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must be in [0, 1), got {self.dropout}")

    def num_parameters(self) -> int:
        """Of a GPT of this shape, by arithmetic: embeddings, 12 C^2 + 13 C a block, ln_f."""
        C = self.n_embd
        return (self.vocab_size + self.block_size + 2) * C + self.n_layer * (12 * C + 13) * C


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""One layer of a key-value cache: remember k and v, attend q to all so far. q, k, v and the result:
(B, nh, T, hs)."""


class Linear(nn.Linear):
    """nn.Linear that `GPT.init_weights` fills: its own drawing, on meta, imports sympy."""

    def reset_parameters(self) -> None:
        """Leave them as they are."""


class Embedding(nn.Embedding):
    """nn.Embedding that `GPT.init_weights` fills: its own drawing, on meta, imports a compiler."""

    def reset_parameters(self) -> None:
        """Leave it as it is."""


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which no position sees a later one."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # q, k, v of all heads at once
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """x and the result: (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
            for part in self.c_attn(x).split(C, dim=2)
        )
        if attend is None:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        else:
            y = attend(q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again


class MLP(nn.Module):
    """Two linear maps, four times as wide in the middle."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """x and the result: (B, T, C)."""
        # The tanh form is GPT-2's: the exact GELU was slow in TensorFlow in 2018, and the released
        # weights were trained with this one.
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention communicates, the MLP thinks; both add to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """x and the result: (B, T, C)."""
        x = x + self.drop(self.attn(self.ln_1(x), attend))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT(nn.Module):
    """GPT-2. `logits, loss = model(idx, targets)`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.multiplicity = 1
        """Tokens that the embedding's last row stands for; above 1 in a compact vocabulary."""
        device = torch.get_default_device()
        with torch.device("meta"):  # shapes first, so that no tensor is drawn twice
            self.wte = Embedding(config.vocab_size, config.n_embd)
            self.wpe = Embedding(config.block_size, config.n_embd)
            self.drop = nn.Dropout(config.dropout)
            self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if device.type != "meta":
            for module in self.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    values = torch.empty(parameter.shape, device=device)
                    setattr(module, name, nn.Parameter(values))
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw every parameter anew from the global generator (rules: see the module's text)."""
        residual_std = 0.02 / (2 * self.config.n_layer) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                is_scale = name.endswith("weight")  # the LayerNorms'; every other vector is a bias
                parameter.fill_(1.0 if is_scale else 0.0)
            else:
                std = residual_std if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, mean=0.0, std=std)

    def hidden(self, idx: Tensor, cache: "KeyValueCache | None" = None) -> Tensor:
        """Token ids (B, T), int64, to final hidden states (B, T, C), before the head."""
        if idx.ndim != 2:
            raise UserError(f"idx must have shape (B, T), got {tuple(idx.shape)}")
        T = idx.shape[1]
        if cache is None:
            if T > self.config.block_size:
                raise UserError(
                    f"sequence of {T} tokens is longer than block_size {self.config.block_size}: "
                    "shorten it or use a model with more positions"
                )
            positions = torch.arange(T, device=idx.device)
        else:
            positions = cache.positions(T)
        x = self.drop(self.wte(idx) + self.wpe(positions))  # (B, T, C)
        for index, block in enumerate(self.h):
            x = block(x, None if cache is None else partial(cache.attend, index))
        return self.ln_f(x)

    def unembed(self, x: Tensor) -> Tensor:
        """Hidden states (..., C) to logits (..., V); rows that only pad the matrix are cut off."""
        return F.linear(x, self.wte.weight)[..., : self.config.vocab_size]

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: "KeyValueCache | None" = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits for every position, and the mean next-token loss when targets are given.

        Args:
            idx: (B, T) int64 token ids.
            targets: (B, T) int64, the token that follows each position; -100 is not scored.
            cache: keys and values of earlier positions, extended in place.

        Returns:
            logits (B, T, V) and the loss, a float32 scalar in nats per token, or None.

        Raises:
            UserError: T is longer than block_size.
        """
        logits = self.unembed(self.hidden(idx, cache))
        if targets is None:
            return logits, None
        # float32 whatever the compute dtype: a bfloat16 log-softmax loses the third digit
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.wte.weight.device

    def num_parameters(self) -> int:
        """Parameters, the tied head counted once: 124,439,808 for the default configuration."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(
        cls, name_or_directory: str | Path, *, revision: str | None = None
    ) -> "GPT":
        """A model from a hub name or a directory in Hugging Face layout, float32, in eval mode."""
        from regpt import weights  # the architecture itself needs no files

        directory = weights.locate(name_or_directory, revision=revision)
        with torch.device("meta"):
            model = cls(GPTConfig(**weights.read_config(directory)))  # pyright: ignore
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights.read_tensors(directory, shapes), assign=True)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that transformers, llama.cpp's converter and CTranslate2 read."""
        from regpt import weights

        weights.write_model(Path(directory), self.state_dict(), asdict(self.config))
