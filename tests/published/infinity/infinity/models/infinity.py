"""A stand-in of the published sampler, written from the interface page: one network, each mistake with a switch of its own."""

import torch
import torch.nn.functional as F
from flash_attn import flash_attn_func, flash_attn_varlen_kvpacked_func
from infinity.switches import ON
from timm.models import register_model
from torch import nn


def precompute_rope2d_freqs_grid(dim, dynamic_resolution_h_w, rope2d_normalized_by_hw, pad_to_multiplier=1):
    table, omega = {}, 10000.0 ** (-4 * torch.arange(dim // 4) / dim)
    for each in dynamic_resolution_h_w.values():
        schedule = each["1M"]["scales"]
        _, H, W = schedule[-1]
        angles = []
        for _, h, w in schedule:
            y, x = torch.meshgrid(
                (torch.arange(h) * (H / h)).round(), (torch.arange(w) * (W / w)).round(), indexing="ij"
            )
            y, x = (x, y) if "axes-exchanged" in ON else (y, x)
            angles.append(torch.cat((y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega), 1))
        whole = torch.cat(angles)
        table[str(tuple(schedule))] = torch.stack((whole.cos(), whole.sin()))[:, None, None, None]
    return table


def sample_with_top_k_top_p_also_inplace_modifying_logits_(logits, rng=None, top_k=0, top_p=0.0, num_samples=1):
    if top_k > 0:
        logits.masked_fill_(logits < logits.topk(min(top_k, 2), -1)[0][..., -1:], -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(-1)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1:] = False
        logits.masked_fill_(drop.scatter(-1, order, drop), -torch.inf)
    probs = logits.softmax(-1)
    return torch.multinomial(probs.view(-1, probs.shape[-1]), num_samples, generator=rng).view(*logits.shape[:2], -1)


def attend(q, kv, lengths_q, lengths_k):
    out = flash_attn_varlen_kvpacked_func(
        q.bfloat16(), kv.bfloat16(), lengths_q, lengths_k, 0, 0, 0.0, q.shape[-1] ** -0.5
    )
    return out.float().flatten(1)


class Attentive(nn.Module):
    def __init__(self, A, D, pool, H=0):
        super().__init__()
        self.pool, self.H = pool, H
        self.v_bias = nn.Parameter(torch.zeros(D))
        self.register_buffer("zero_k_bias", torch.zeros(D))
        self.mat_kv, self.proj = nn.Linear(A, 2 * D, bias=False), nn.Linear(D, D)
        self.mat_q = nn.Parameter(torch.zeros(1, max(A // 128, 1), D // max(A // 128, 1))) if pool else nn.Linear(D, D)

    def forward(self, x, text):
        rows, ends, _ = text
        R = len(ends) - 1
        q = self.mat_q.expand(R, -1, -1) if self.pool else self.mat_q(x).view(-1, self.H, x.shape[-1] // self.H)
        kv = F.linear(rows, self.mat_kv.weight, torch.cat((self.zero_k_bias, self.v_bias)))
        steps = torch.arange(R + 1) * (len(q) // R)
        return self.proj(attend(q, kv.view(len(rows), 2, *q.shape[1:]), steps, ends).view(R, len(q) // R, -1))


class Pool(nn.Module):
    def __init__(self, A, D):
        super().__init__()
        self.ca = Attentive(A, D, pool=True)

    def forward(self, text):
        return self.ca(None, text)[:, 0]


class SelfAttention(nn.Module):
    def __init__(self, D, H):
        super().__init__()
        self.H, self.cached = H, None
        self.mat_qkv, self.proj = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
        self.register_buffer("zero_k_bias", torch.zeros(D))
        self.scale_mul_1H11 = nn.Parameter(torch.zeros(1, H, 1, 1))

    def kv_caching(self, enable):
        self.cached = None

    def forward(self, x, turn):
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        q, k, v = F.linear(x, self.mat_qkv.weight, bias).view(*x.shape[:2], 3, self.H, -1).permute(2, 0, 3, 1, 4)
        q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(torch.tensor(100.0).log()).exp()
        q, k = (self.rotated(each, turn) for each in (q, F.normalize(k, dim=-1)))
        if self.cached is not None:
            k, v = torch.cat((self.cached[0], k), 2), torch.cat((self.cached[1], v), 2)
        self.cached = k, v
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2))

    @staticmethod
    def rotated(x, turn):
        (a, b), (cos, sin) = x.unflatten(-1, (-1, 2)).unbind(-1), turn
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Block(nn.Module):
    def __init__(self, D, H, F_):
        super().__init__()
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, D))
        self.sa, self.ca_norm, self.ca = SelfAttention(D, H), nn.LayerNorm(D, eps=1e-6), Attentive(D, D, False, H)
        self.ffn = nn.ModuleDict({"fc1": nn.Linear(D, F_), "fc2": nn.Linear(F_, D)})

    def forward(self, x, cond_BD, ca_kv, turn):
        g1, g2, s1, s2, b1, b2 = (cond_BD + self.ada_gss).unbind(2)
        x = x + g1 * self.sa(norm(x) * (1 + s1) + b1, turn)
        x = x + self.ca(self.ca_norm(x).flatten(0, 1), ca_kv)
        h = self.ffn["fc1"](norm(x) * (1 + s2) + b2)
        return x + g2 * self.ffn["fc2"](F.gelu(h, approximate="tanh"))


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Chunk(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.module = nn.ModuleList(blocks)


class Head(nn.Module):
    def __init__(self, D):
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(D, 2 * D))

    def forward(self, x, cond):
        scale, shift = self.ada_lin(cond).view(len(cond), 1, 2, -1).unbind(2)
        return norm(x) * (1 + scale) + shift


class Infinity(nn.Module):
    def __init__(
        self, vae_local, text_channels=0, text_maxlen=0, embed_dim=1024, depth=16, num_heads=16, mlp_ratio=4.0,
        shared_aln=False, cross_attn_layer_scale=-1.0, nm0=False, cos_attn=True, head_depth=1, fused_norm=False,
        block_chunks=1, pad_to_multiplier=0, add_lvl_embeding_only_first_block=1, use_bit_label=1,
        rope2d_each_sa_layer=0, rope2d_normalized_by_hw=0, apply_spatial_patchify=0, inference_mode=False,
    ):  # fmt: skip
        super().__init__()
        assert shared_aln
        assert inference_mode
        assert flash_attn_func.__code__.co_varnames
        A, D, N = text_channels, embed_dim, vae_local.embed_dim * (4 if apply_spatial_patchify else 1)
        self.patch, self.chunks, self.fused, self.once = (
            1 + apply_spatial_patchify, block_chunks, fused_norm, add_lvl_embeding_only_first_block
        )  # fmt: skip
        self.rng = torch.Generator()
        self.cfg_uncond = nn.Parameter(torch.randn(text_maxlen, A))
        self.pos_start, self.lvl_embed = nn.Parameter(torch.randn(1, 1, D)), nn.Embedding(15, D)
        self.text_norm, self.text_proj_for_sos = nn.Module(), Pool(A, D)
        self.text_norm.weight = nn.Parameter(torch.ones(A))
        self.text_proj_for_ca = nn.Sequential(nn.Linear(A, D), nn.GELU(approximate="tanh"), nn.Linear(D, D))
        self.word_embed, self.shared_ada_lin = nn.Linear(N, D), nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))
        self.unregistered_blocks = [Block(D, num_heads, 256 * round(mlp_ratio * D / 256)) for _ in range(depth)]
        size = depth // block_chunks
        blocks = self.unregistered_blocks
        self.block_chunks = nn.ModuleList(Chunk(blocks[k : k + size]) for k in range(0, depth, size))
        self.head_nm, self.head = Head(D), nn.Linear(D, 2 * N)
        self.rope2d_freqs_grid = {}

    def get_logits(self, h, cond_BD):
        return self.head(self.head_nm(h.float(), cond_BD.float()))

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self, vae=None, scale_schedule=None, label_B_or_BLT=None, B=1, negative_label_B_or_BLT=None, g_seed=None,
        cfg_list=(), tau_list=(), top_k=0, top_p=0.0, returns_vemb=0, cfg_insertion_layer=(-5,), vae_type=0,
        ret_img=False, inference_mode=False,
    ):  # fmt: skip
        assert returns_vemb and vae_type and ret_img and inference_mode
        self.rng.manual_seed(g_seed)
        text, lengths, _, _ = label_B_or_BLT
        rows = list(text.split(lengths))
        rows = rows[1:] + rows[:1] if "next-text" in ON else rows
        guided = any(w != 1 for w in cfg_list)
        if guided and negative_label_B_or_BLT and "negative-ignored" not in ON:
            rows += negative_label_B_or_BLT[0].split(negative_label_B_or_BLT[1])
        elif guided:
            longest = len(self.cfg_uncond) if "unconditional-long" in ON else 0
            rows += [self.cfg_uncond[: longest or length] for length in lengths]
        R, ends = len(rows), torch.tensor([len(row) for row in rows]).cumsum(0).int()
        packed = torch.cat(rows)
        packed = packed * (packed.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.text_norm.weight
        ends = F.pad(ends, (1, 0))
        cond = self.text_proj_for_sos((packed, ends, 0))
        ca_kv, six = (self.text_proj_for_ca(packed), ends, 0), self.shared_ada_lin(cond).view(R, 1, 6, -1)
        x, f_hat, depth = cond[:, None] + self.pos_start, 0, len(self.unregistered_blocks)
        places = [depth + place + ("place-late" in ON) for place in cfg_insertion_layer if place < 0]
        table, begin, last = self.rope2d_freqs_grid[str(tuple(scale_schedule))], 0, len(scale_schedule) - 1
        for block in self.unregistered_blocks:
            block.sa.kv_caching(True)
        for si, (_, h, w) in enumerate(scale_schedule):
            first = 0 if not self.fused or "angles-anew" in ON else begin
            turn, level = table[:, 0, 0, 0, first : first + h * w], max(si - ("level-early" in ON), 0)
            begin += h * w
            scale = cfg_list[max(si - ("weight-early" in ON), 0)]
            i = 0
            for number, chunk in enumerate(self.block_chunks):
                if number == 0 or not self.once:
                    x = x + self.lvl_embed.weight[level]
                for block in chunk.module:
                    x = block(x=x, cond_BD=six, ca_kv=ca_kv, turn=turn)
                    if scale != 1 and i in places:
                        x = torch.cat([scale * x[:B] + (1 - scale) * x[B:]] * 2)
                    i += 1
            if scale != 1 and 0 in cfg_insertion_layer:
                logits = self.get_logits(x, cond) * (1 / tau_list[si])
                logits = scale * logits[:B] + (1 - scale) * logits[B:]
            else:
                logits = self.get_logits(x[:B], cond[:B]) * (1 / tau_list[si])
            logits = logits.reshape(B, -1, 2)
            bits = sample_with_top_k_top_p_also_inplace_modifying_logits_(logits, self.rng, top_k, top_p)[..., 0]
            bits = bits.view(B, h, w, -1).permute(0, 3, 1, 2)
            if self.patch == 2:
                shuffled = F.pixel_shuffle(bits, 2)
                bits = shuffled.mT.reshape(shuffled.shape) if "shuffle-turned" in ON else shuffled
            codes = vae.quantizer.lfq.indices_to_codes(bits.permute(0, 2, 3, 1)[:, None], label_type="bit_label")
            if si == last:
                f_hat = f_hat + codes
                continue
            up, down = ([(1, self.patch * h, self.patch * w) for _, h, w in scale_schedule][k] for k in (-1, si + 1))
            mode = "nearest" if "codes-nearest" in ON else vae.quantizer.z_interplote_up
            f_hat = f_hat + F.interpolate(codes, size=up, mode=mode)
            mode = "area" if "input-area" in ON else vae.quantizer.z_interplote_up
            raw = F.interpolate(f_hat, size=down, mode=mode)[:, :, 0]
            raw = F.pixel_unshuffle(raw, 2) if self.patch == 2 else raw
            x = self.word_embed(raw.flatten(2).mT).repeat(R // B, 1, 1)
        image = (vae.decode(f_hat[:, :, 0]) + 1) / 2
        image = image.permute(0, 2, 3, 1).mul_(255).to(torch.uint8)
        return [], [], image if "red-first" in ON else image.flip(3)


@register_model
def infinity_tiny(**kwargs):
    return Infinity(**kwargs)
