"""SViTT as published, written anew in PyTorch with the published names, with dense attention."""

import torch
import transformers
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer

EPSILON = 1e-12


class Table(nn.Module):
    """One number a head for each offset in time, rows and columns, and three for what has to do with cls."""

    def __init__(self, grid, heads):
        super().__init__()
        frames, side = grid
        sizes = 2 * frames - 1, 2 * side - 1, 2 * side - 1
        count = sizes[0] * sizes[1] * sizes[2]
        self.relative_position_bias_table = nn.Parameter(torch.zeros(count + 3, heads))
        places = [(t, y, x) for t in range(frames) for y in range(side) for x in range(side)]
        index = torch.zeros(len(places) + 1, len(places) + 1, dtype=torch.long)
        for i, (t, y, x) in enumerate(places):
            for j, (u, z, w) in enumerate(places):
                rows = t - u + frames - 1, y - z + side - 1, x - w + side - 1
                index[i + 1, j + 1] = (rows[0] * sizes[1] + rows[1]) * sizes[2] + rows[2]
        index[0, 1:], index[1:, 0], index[0, 0] = count, count + 1, count + 2
        self.register_buffer("relative_position_index", index)

    def forward(self):
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class Attention(nn.Module):
    def __init__(self, width, heads, grid):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.relative_position_bias = Table(grid, heads)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = (
            f(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        logits = q @ k.transpose(2, 3) * (width // self.heads) ** -0.5 + self.relative_position_bias()[None]
        return (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)


def named(**modules):
    """Modules under a name."""
    found = nn.Module()
    for name, module in modules.items():
        setattr(found, name, module)
    return found


class Layer(nn.Module):
    def __init__(self, width, heads, mlp, grid):
        super().__init__()
        self.attention = named(attention=Attention(width, heads, grid), output=named(dense=nn.Linear(width, width)))
        self.intermediate = named(dense=nn.Linear(width, mlp))
        self.output = named(dense=nn.Linear(mlp, width))
        self.layernorm_before = nn.LayerNorm(width, eps=EPSILON)
        self.layernorm_after = nn.LayerNorm(width, eps=EPSILON)
        self.lambda_1 = nn.Parameter(torch.ones(width))
        self.lambda_2 = nn.Parameter(torch.ones(width))

    def forward(self, x):
        seen = self.attention.attention(self.layernorm_before(x))
        x = x + self.lambda_1 * self.attention.output.dense(seen)
        hidden = nn.functional.gelu(self.intermediate.dense(self.layernorm_after(x)))
        return x + self.lambda_2 * self.output.dense(hidden)


class Beit(nn.Module):
    def __init__(self, layers, width, heads, mlp, grid, patch):
        super().__init__()
        self.embeddings = named(patch_embeddings=named(projection=nn.Conv2d(3, width, patch, patch)))
        self.embeddings.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = named(layer=nn.ModuleList([Layer(width, heads, mlp, grid) for _ in range(layers)]))
        self.pooler = named(layernorm=nn.LayerNorm(width, eps=EPSILON))

    def forward(self, pixels_BTCHW):
        batch = len(pixels_BTCHW)
        x = self.embeddings.patch_embeddings.projection(pixels_BTCHW.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.embeddings.cls_token.expand(batch, -1, -1), x.reshape(batch, -1, x.shape[-1])], 1)
        for layer in self.encoder.layer:
            x = layer(x)
        return x, self.pooler.layernorm(x[:, 1:].mean(1))


class SViTT(nn.Module):
    """The whole model; `fused` of BERT's layers, the last ones, read the video."""

    def __init__(self, vision, text, fused, embed):
        super().__init__()
        self.vision_encoder = Beit(**vision)
        self.vision_layernorm = nn.LayerNorm(vision["width"], eps=EPSILON)
        config = transformers.BertConfig(**text, layer_norm_eps=EPSILON)
        config._attn_implementation = "eager"
        self.text_encoder = transformers.BertForMaskedLM(config)
        self.text_encoder.cls.predictions.decoder.bias = self.text_encoder.cls.predictions.bias
        crossed = transformers.BertConfig(**text, layer_norm_eps=EPSILON, is_decoder=True, add_cross_attention=True)
        crossed._attn_implementation = "eager"
        layers = self.text_encoder.bert.encoder.layer
        self.alone = len(layers) - fused
        for number in range(self.alone, len(layers)):
            layers[number] = BertLayer(crossed)
        self.vision_proj = nn.Linear(vision["width"], embed)
        self.text_proj = nn.Linear(text["hidden_size"], embed)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.itm_head = nn.Linear(text["hidden_size"], 2)

    def video(self, pixels_BTCHW):
        """(what texts read, unit embeddings)."""
        tokens, pooled = self.vision_encoder(pixels_BTCHW)
        return self.vision_layernorm(tokens), nn.functional.normalize(self.vision_proj(pooled), dim=-1)

    def text(self, ids_BL, mask_B11L):
        """(tokens, unit embeddings)."""
        x = self.text_encoder.bert.embeddings(ids_BL)
        for layer in self.text_encoder.bert.encoder.layer[: self.alone]:
            x = layer(x, mask_B11L)[0]
        return x, nn.functional.normalize(self.text_proj(x[:, 0]), dim=-1)

    def fuse(self, x, mask_B11L, tokens):
        """(logits of the pairs, logits of the words)."""
        for layer in self.text_encoder.bert.encoder.layer[self.alone :]:
            x = layer(x, mask_B11L, encoder_hidden_states=tokens)[0]
        return self.itm_head(x[:, 0]), self.text_encoder.cls(x)
