"""PyTorch twin of `mbti_jax.models.unet.UNet`: the peer that the benchmark runs against.

Written for this project. The state dict has guided-diffusion's names, and
tests/models/test_torch_twin.py checks it against the same reference numbers as the JAX network. Not part
of the package.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def conv3x3(features_in: int, features_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(features_in, features_out, 3, stride=stride, padding=1)


def zeroed(layer: nn.Module) -> nn.Module:
    for param in layer.parameters():
        nn.init.zeros_(param)
    return layer


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    """[B] -> [B, dim] float32: cosines, then sines, of t 10000^(-k / (dim // 2))."""
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10_000) * k / half)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class Stage(nn.Sequential):
    """Layers in a row, of which the residual blocks also get the embedding."""

    def forward(self, x, embedding):
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class Upsample(nn.Module):
    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        self.conv = conv3x3(channels, channels) if use_conv else nn.Identity()

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        self.op = conv3x3(channels, channels, stride=2) if use_conv else nn.AvgPool2d(2)

    def forward(self, x):
        return self.op(x)


class ResBlock(nn.Module):
    def __init__(self, features_in, channels, embedding_width, config, resample="none"):
        super().__init__()
        self.use_scale_shift_norm = config["use_scale_shift_norm"]
        groups = config["num_groups"]
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, features_in), nn.SiLU(), conv3x3(features_in, channels)
        )
        self.resample = {
            "none": nn.Identity,
            "up": lambda: Upsample(channels, use_conv=False),
            "down": lambda: Downsample(channels, use_conv=False),
        }[resample]()
        condition_width = channels * (2 if self.use_scale_shift_norm else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, condition_width))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Dropout(config["dropout"]),
            zeroed(conv3x3(channels, channels)),
        )
        same = features_in == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(features_in, channels, 1)

    def forward(self, x, embedding):
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        condition = self.emb_layers(embedding)[..., None, None]
        norm, *rest = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = condition.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + condition)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, num_heads: int, config):
        super().__init__()
        if config["num_head_channels"] != -1:
            num_heads = channels // config["num_head_channels"]
        self.num_heads = num_heads
        self.use_new_attention_order = config["use_new_attention_order"]
        self.norm = nn.GroupNorm(config["num_groups"], channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x):
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)
        qkv = self.qkv(self.norm(flat))
        order = (3, self.num_heads) if self.use_new_attention_order else (self.num_heads, 3)
        qkv = qkv.reshape(batch, *order, channels // self.num_heads, height * width)
        qkv = qkv.transpose(-1, -2)  # scaled_dot_product_attention: [B, heads, positions, channels]
        query, key, value = qkv.unbind(1 if self.use_new_attention_order else 2)
        h = F.scaled_dot_product_attention(query, key, value)
        h = h.transpose(-1, -2).reshape(batch, channels, height * width)
        return x + self.proj_out(h).reshape(x.shape)


DEFAULTS = {
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "num_classes": 0,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "num_groups": 32,
    "patch_size": 1,
}


class TorchUNet(nn.Module):
    """ADM UNet, NCHW. Takes the configuration of the JAX `UNet` (JAX-only fields are ignored)."""

    def __init__(self, **config):
        super().__init__()
        config = DEFAULTS | config
        self.model_channels = config["model_channels"]
        self.num_classes = config["num_classes"]
        self.patch_size = config["patch_size"]
        levels = [int(multiple * self.model_channels) for multiple in config["channel_mult"]]
        attends = [2**i in config["attention_resolutions"] for i in range(len(levels))]
        heads = config["num_heads"]
        heads_up = heads if config["num_heads_upsample"] == -1 else config["num_heads_upsample"]
        half = 4 * self.model_channels
        width = 2 * half if self.num_classes else half

        def mlp(features_in):
            return nn.Sequential(nn.Linear(features_in, half), nn.SiLU(), nn.Linear(half, half))

        def res(features_in, channels, resample="none"):
            return ResBlock(features_in, channels, width, config, resample)

        self.time_embed = mlp(self.model_channels)
        if self.num_classes:
            self.label_emb = mlp(self.num_classes)

        channels = levels[0]
        folded = self.patch_size**2
        self.input_blocks = nn.ModuleList(
            [Stage(conv3x3(folded * config["in_channels"], channels))]
        )
        skips = [channels]
        for level, level_channels in enumerate(levels):
            for _ in range(config["num_res_blocks"]):
                layers = [res(channels, level_channels)]
                channels = level_channels
                if attends[level]:
                    layers.append(AttentionBlock(channels, heads, config))
                self.input_blocks.append(Stage(*layers))
                skips.append(channels)
            if level < len(levels) - 1:
                if config["resblock_updown"]:
                    down = res(channels, channels, "down")
                else:
                    down = Downsample(channels, config["conv_resample"])
                self.input_blocks.append(Stage(down))
                skips.append(channels)

        self.middle_block = Stage(
            res(channels, channels),
            AttentionBlock(channels, heads, config),
            res(channels, channels),
        )

        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(levels))):
            for i in range(config["num_res_blocks"] + 1):
                layers = [res(channels + skips.pop(), levels[level])]
                channels = levels[level]
                if attends[level]:
                    layers.append(AttentionBlock(channels, heads_up, config))
                if level and i == config["num_res_blocks"]:
                    if config["resblock_updown"]:
                        layers.append(res(channels, channels, "up"))
                    else:
                        layers.append(Upsample(channels, config["conv_resample"]))
                self.output_blocks.append(Stage(*layers))

        self.out = nn.Sequential(
            nn.GroupNorm(config["num_groups"], channels),
            nn.SiLU(),
            zeroed(conv3x3(channels, folded * config["out_channels"])),
        )

    def forward(self, x, t, class_vector=None):
        """x [B, in_channels, H, W], t [B], class_vector [B, num_classes] -> [B, out_channels, H, W]."""
        embedding = self.time_embed(timestep_embedding(t, self.model_channels))
        if self.num_classes:
            embedding = torch.cat([embedding, self.label_emb(class_vector)], dim=1)
        h = space_to_depth(x, self.patch_size)
        skips = []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return depth_to_space(self.out(h), self.patch_size)


def space_to_depth(x: torch.Tensor, patch_size: int) -> torch.Tensor:
    """[B, C, H, W] -> [B, p p C, H/p, W/p], channels ordered (row, column, C) as in the JAX network."""
    batch, channels, height, width = x.shape
    p = patch_size
    x = x.reshape(batch, channels, height // p, p, width // p, p).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, p * p * channels, height // p, width // p)


def depth_to_space(x: torch.Tensor, patch_size: int) -> torch.Tensor:
    """[B, p p C, H/p, W/p] -> [B, C, H, W], the inverse of `space_to_depth`."""
    batch, channels, height, width = x.shape
    p = patch_size
    x = x.reshape(batch, p, p, channels // p**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // p**2, height * p, width * p)
