"""Stand-in for SDVAR's `models.var`: right as it stands, each mistake of the report behind a switch.

One file, since the published interface is one.
"""

import torch
from torch import nn

from .helpers import sample_with_top_k_top_p_
from .network import Base
from .switches import ON

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class VAR(Base):
    """VAR's file, as it is there too."""


class SDVARInferenceState:
    """One decode in flight."""

    def __init__(self, **values):
        self.__dict__.update(values)


class SDVAR(nn.Module):
    """Draft and target."""

    def __init__(self, draft_model, target_model, similarity_thresh=0.8):
        super().__init__()
        self.draft_model, self.target_model, self.similarity_thresh = draft_model, target_model, similarity_thresh
        sides = SIDES if "ten-scales" in ON else target_model.patch_nums
        level = torch.cat([torch.full((pn * pn,), si) for si, pn in enumerate(sides)])
        same = level[:, None] == level[None]
        before = torch.arange(len(level))[:, None] >= torch.arange(len(level))[None]
        own = torch.eye(len(level), dtype=torch.bool)
        self.attn_bias_for_sdmasking = torch.where((before & ~same) | own, 0.0, -torch.inf)[None, None]
        self.attn_bias_for_block = torch.where(same, 0.0, -torch.inf)[None, None]

    # --- the hand-off -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sdvar_autoregressive_infer_cfg_sd_test3(
        self, B, label_B, g_seed=None, cfg=1.5, top_k=0, top_p=0.0, more_smooth=False, entry_num=10, sd_mask=0,
    ):  # fmt: skip
        draft, target = self.draft_model, self.target_model
        rng = draft.rng
        rng.manual_seed(g_seed)
        label_B = draft.labels(B, label_B, rng)
        sides, S = draft.patch_nums, len(draft.patch_nums)
        entry_num = min(entry_num, S)
        cond_RD, lvl_pos, x = draft.first(label_B)
        f_hat, raws = x.new_zeros(B, draft.Cvae, sides[-1], sides[-1]), []
        draft.caching(True)
        for si in range(entry_num):
            logits = draft.guided(draft.get_logits(draft.run(x, cond_RD), cond_RD), si, cfg, B)
            f_hat, raw = self.draw(draft, logits, si, f_hat, (top_k, top_p, rng, more_smooth))
            if si < S - 1:
                raws.append(raw.reshape(B, draft.Cvae, -1).transpose(1, 2).clone())
                x = draft.next_input(raw, si + 1, lvl_pos)
        draft.caching(False)
        if entry_num == S:
            return draft.picture(f_hat)
        cond_RD, lvl_pos, x = target.first(label_B)
        if entry_num:
            begin, end = target.begin_ends[entry_num]
            rest = (target.word_embed(torch.cat(raws, 1)) + lvl_pos[:, 1:end]).repeat(2, 1, 1)
            whole = torch.cat((x, rest), 1)
            x = whole[:, begin:end]
        target.caching(True)
        for si in range(entry_num, S):
            if si == entry_num and entry_num and sd_mask:
                mask = {3: target.attn_bias_for_masking}.get(sd_mask)
                if mask is None:
                    mask = (self.attn_bias_for_sdmasking if sd_mask < 3 else self.attn_bias_for_block).to("cuda:0")
                hidden = target.run(whole, cond_RD, mask[:, :, :end, :end])[:, begin:end]
                logits = target.get_logits(x if "entry-raw" in ON else hidden, cond_RD)
            else:
                logits = target.get_logits(target.run(x, cond_RD), cond_RD)
            f_hat, raw = self.draw(
                target, target.guided(logits, si, cfg, B), si, f_hat, (top_k, top_p, rng, more_smooth)
            )
            if si < S - 1:
                x = target.next_input(raw, si + 1, lvl_pos)
        target.caching(False)
        return target.picture(f_hat)

    def draw(self, model, logits, si, f_hat, how):
        """Draw a scale and accumulate it."""
        top_k, top_p, rng, more_smooth = how
        idx_Bl = sample_with_top_k_top_p_(logits, top_k=top_k, top_p=top_p, rng=rng)[:, :, 0]
        codes = model.soft_codes(logits, si, rng) if more_smooth else model.codes(idx_Bl, model.patch_nums[si])
        return model.vae_quant_proxy[0].get_next_autoregressive_input(si, len(model.patch_nums), f_hat, codes)

    # --- the parallel decode ------------------------------------------------------------------------------------

    def _initialize_inference_state(self, B, label_B, g_seed, cfg, gamma):
        draft, target = self.draft_model, self.target_model
        for model in (draft, target):
            model.rng.manual_seed(g_seed)
            model.caching(True)
        label_B = draft.labels(B, label_B, draft.rng)
        label_T = (label_B + 1) % target.num_classes if "target-labels" in ON else label_B
        draft_cond, draft_pos, draft_x = draft.first(label_B)
        target_cond, target_pos, target_x = target.first(label_T)
        side = target.patch_nums[-1]
        draft_f_hat = draft_x.new_zeros(B, draft.Cvae, side, side)
        return SDVARInferenceState(
            current_stage=0, gamma=gamma, total_stages=len(target.patch_nums), accept_count=0, reject_count=0,
            target_calls=0, patch_nums=target.patch_nums, draft_f_hat=draft_f_hat,
            target_f_hat=draft_f_hat if "alias" in ON else draft_f_hat.clone(),
            draft_next_token_map=draft_x, target_next_token_map=target_x, draft_cond_BD=draft_cond,
            target_cond_BD=target_cond, draft_lvl_pos=draft_pos, target_lvl_pos=target_pos, cfg=cfg,
            rng=draft.rng, top_k=0, top_p=0.0, more_smooth=False, accepted_tokens=[], current_tokens_length=0,
        )  # fmt: skip

    def draft_generate_batch(self, state, B, verbose=False):
        draft, S, made = self.draft_model, state.total_stages, []
        if "caches-emptied" in ON:
            draft.caching(True)
        x = state.draft_next_token_map
        f_hat = state.draft_f_hat if "alias" in ON else state.draft_f_hat.clone()
        last = min(state.current_stage + state.gamma, S)
        for si in range(state.current_stage, last):
            logits = draft.guided(
                draft.get_logits(draft.run(x, state.draft_cond_BD), state.draft_cond_BD), si, state.cfg, B
            )
            idx = sample_with_top_k_top_p_(logits, top_k=state.top_k, top_p=state.top_p, rng=state.rng)[:, :, 0]
            made.append(idx)
            if si == S - 1:
                break
            f_hat, raw = draft.vae_quant_proxy[0].get_next_autoregressive_input(
                si, S, f_hat, draft.codes(idx, draft.patch_nums[si])
            )
            x = draft.next_input(raw, si + 1, state.draft_lvl_pos)
        if "draft-crashes" in ON:
            raise RuntimeError("shape mismatch in draft_generate_batch")
        return made

    def _build_combined_query(self, draft_tokens, state, B):
        target = self.target_model
        if "repair-query" in ON:
            return self.repaired_query(draft_tokens, state, B)
        half = state.target_next_token_map[:B] if "doubled-last" in ON else state.target_next_token_map
        pieces, f_hat = [half], state.target_f_hat.clone()
        if "map-not-advanced" in ON and state.current_stage:
            pieces = [target.first(torch.zeros(B, dtype=torch.long))[2][: len(half)]]
        at = 1 if "position-offset" in ON else 0
        for k, idx in enumerate(draft_tokens[:-1]):
            si = state.current_stage + k
            codes = target.codes(idx, target.patch_nums[si])
            f_hat, raw = target.vae_quant_proxy[0].get_next_autoregressive_input(si, state.total_stages, f_hat, codes)
            pos = state.target_lvl_pos.roll(at, 1)
            if "own-tokens" in ON:
                h = target.vae_quant_proxy[0].embedding(draft_tokens[k + 1])
                if "transposed" in ON:
                    h = h.transpose(1, 2)
                begin, end = target.begin_ends[si + 1]
                x = (target.word_embed(h) + pos[:, begin:end]).repeat(2, 1, 1)
            else:
                x = target.next_input(raw, si + 1, pos)
            pieces.append(x[:B] if "doubled-last" in ON else x)
        if "start-token" in ON:
            first = target.first(torch.zeros(B, dtype=torch.long))[2]
            pieces.insert(0, first[:B] if "doubled-last" in ON else first)
        x = torch.cat(pieces, 1)
        return x.repeat(2, 1, 1) if "doubled-last" in ON else x

    def repaired_query(self, draft_tokens, state, B):
        """As the report repairs it."""
        current_pos = sum(p**2 for p in state.patch_nums[: state.current_stage])
        all_embeddings = []
        for stage_idx, tokens in enumerate(draft_tokens):
            pn = state.patch_nums[state.current_stage + stage_idx]
            h_BChw = self.target_model.vae_quant_proxy[0].embedding(tokens)
            h_embed = h_BChw.transpose(1, 2)
            stage_embedding = self.target_model.word_embed(h_embed)
            stage_embedding = stage_embedding + state.target_lvl_pos[:, current_pos : current_pos + pn * pn]
            all_embeddings.append(stage_embedding)
            current_pos += pn * pn
        return torch.cat(all_embeddings, dim=1).repeat(2, 1, 1)

    def _split_logits_by_stage(self, target_logits, draft_tokens, B, state):
        made, at = [], 0
        if "repair-split" in ON:  # as the report repairs it
            assert target_logits.shape[0] == 2 * B
            at = sum(p**2 for p in state.patch_nums[: state.current_stage])
        if "start-token" in ON:
            at = 1
        total = sum(idx.shape[1] for idx in draft_tokens)
        if target_logits.shape[1] != total and not ON & {"split-unchecked", "start-token", "repair-split"}:
            raise ValueError(f"{target_logits.shape[1]} logits for {total} tokens")
        for idx in draft_tokens:
            l = idx.shape[1]
            rows = slice(0, B) if "split-half" in ON else slice(None)
            made.append(target_logits[rows, at : at + l])
            at += l
        return made

    def _get_attention_mask(self, mask_length, current_stage, gamma):
        target = self.target_model
        begin, end = (
            target.begin_ends[current_stage][0],
            target.begin_ends[min(current_stage + gamma, len(target.patch_nums)) - 1][1],
        )
        if "mask-corner" in ON:
            return target.attn_bias_for_masking[:, :, :mask_length, :mask_length]
        if "mask-causal" in ON:
            return torch.full((mask_length, mask_length), -torch.inf).triu(1)[None, None]
        return target.attn_bias_for_masking[:, :, begin:end, begin:end]

    def target_verify_batch(self, draft_tokens, state, B):
        target = self.target_model
        if "caches-emptied" in ON:
            target.caching(True)
        x = self._build_combined_query(draft_tokens, state, B)
        mask = self._get_attention_mask(x.shape[1], state.current_stage, len(draft_tokens))
        cached = target.blocks[0].attn.cached_k
        if cached is not None:
            mask = torch.cat((mask.new_zeros(1, 1, x.shape[1], cached.shape[2]), mask), -1)
        if mask.shape[-2] != x.shape[1]:
            mask = nn.functional.pad(mask, (x.shape[1] - mask.shape[-2],) * 2 + (0, 0))[..., :1, :]
        logits = target.get_logits(target.run(x, state.target_cond_BD, mask), state.target_cond_BD)
        state.target_calls += 1
        pieces = self._split_logits_by_stage(logits, draft_tokens, B, state)
        guided = []
        for k, rows in enumerate(pieces):
            guided.append(target.guided(rows, state.current_stage + k, state.cfg, B))
        return guided, len(draft_tokens)

    def basic_token_matching(self, draft_tokens, target_logits, state, B, similarity_threshold=None, verbose=False):
        due = self.similarity_thresh if similarity_threshold is None else similarity_threshold
        accepted = 0
        for idx, logits in zip(draft_tokens, target_logits, strict=True):
            hits = (idx == logits.argmax(-1)).float()
            share = hits[0].mean() if "first-image" in ON else hits.mean()
            if not (share <= due if "inverted" in ON else share >= due):
                break
            accepted += 1
        return accepted

    def advanced_token_matching(self, draft_tokens, target_logits, state, B):
        return self.basic_token_matching(draft_tokens, target_logits, state, B)

    def update_state_with_accepted_tokens(self, draft_tokens, accept_length, state, B):
        draft, target, S = self.draft_model, self.target_model, state.total_stages
        kept = draft_tokens[:accept_length]
        for k, idx in enumerate(kept):
            si = state.current_stage + k
            quantizer = target.vae_quant_proxy[0]
            codes = target.codes(idx, state.patch_nums[si])
            for _ in range(2 if "double-update" in ON else 1):
                state.target_f_hat, raw = quantizer.get_next_autoregressive_input(si, S, state.target_f_hat, codes)
            if "alias" not in ON and not ("last-scale-missing" in ON and k == len(kept) - 1):
                state.draft_f_hat = state.target_f_hat.clone()
            if si < S - 1 and "map-not-advanced" not in ON:
                state.draft_next_token_map = draft.next_input(raw, si + 1, state.draft_lvl_pos)
                state.target_next_token_map = target.next_input(raw, si + 1, state.target_lvl_pos)
            if "accepted-not-filled" not in ON:
                state.accepted_tokens.append(idx)
        if "out-of-sync" in ON:
            state.draft_f_hat = state.draft_f_hat + 1.0
        state.current_stage += len(kept)
        length = sum(pn * pn for pn in state.patch_nums[: state.current_stage])
        state.current_tokens_length = length
        for model in (draft, target):
            for block in model.blocks:
                if block.attn.cached_k is not None:
                    block.attn.cached_k = block.attn.cached_k[:, :, :length]
                    block.attn.cached_v = block.attn.cached_v[:, :, :length]

    def loop(self, B, label_B, g_seed, cfg, gamma, filters, how):
        """The main loop."""
        threshold, retries = how
        state = self._initialize_inference_state(B, label_B, g_seed, cfg, gamma)
        state.top_k, state.top_p = filters
        rejected = 0
        while state.current_stage < state.total_stages:
            tokens = self.draft_generate_batch(state, B)
            logits, _ = self.target_verify_batch(tokens, state, B)
            more = () if threshold is None else (threshold,)
            accepted = self.basic_token_matching(tokens, logits, state, B, *more)
            if accepted == 0:
                state.reject_count, rejected = state.reject_count + 1, rejected + 1
                if "loop-stops" in ON:
                    state.gamma = max(1, state.gamma - 1)
                    if rejected > retries:
                        break
                    self.cut(state)
                    continue
                own = sample_with_top_k_top_p_(logits[0].clone(), top_k=state.top_k, top_p=state.top_p, rng=state.rng)
                tokens, accepted = [own[:, :, 0]], 1
            else:
                state.accept_count += accepted
            self.update_state_with_accepted_tokens(tokens, accepted, state, B)
        return self.target_model.picture(state.target_f_hat)

    def cut(self, state):
        """Drop what a rejected round left in the caches."""
        self.update_state_with_accepted_tokens([], 0, state, 1)


class Main(SDVAR):
    """Signatures of the branch main."""

    def draft_generate_batch(self, state, B):
        return super().draft_generate_batch(state, B)

    def basic_token_matching(self, draft_tokens, target_logits, state, B):
        return super().basic_token_matching(draft_tokens, target_logits, state, B)

    @torch.no_grad()
    def sdvar_autoregressive_infer_cfg_parallel_v1(
        self, B, label_B, g_seed=None, cfg=1.5, gamma=2, top_k=0, top_p=0.0, more_smooth=False,
    ):  # fmt: skip
        return self.loop(B, label_B, g_seed, cfg, gamma, (top_k, top_p), (None, 3))


class WithThreshold(SDVAR):
    """Signatures of the branch addparam-th."""

    @torch.no_grad()
    def sdvar_autoregressive_infer_cfg_parallel_v1(
        self, B, label_B, g_seed=None, cfg=1.5, gamma=2, top_k=0, top_p=0.0, more_smooth=False,
        similarity_threshold=0.5, max_retries=3, verbose=False,
    ):  # fmt: skip
        return self.loop(B, label_B, g_seed, cfg, gamma, (top_k, top_p), (similarity_threshold, max_retries))


SDVAR = WithThreshold if "addparam-th" in ON else Main
if "no-method" in ON:
    del Main.sdvar_autoregressive_infer_cfg_parallel_v1
