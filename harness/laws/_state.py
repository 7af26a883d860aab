"""Laws of state: between rounds, nothing remembers that anything was ever drafted."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.errors import InputError
from harness.judge import Broken, require
from harness.laws import _oracle as oracle
from harness.laws._case import Case
from harness.laws._law import FLOAT64, Subject, law, require_equal, require_same, require_tokens
from harness.models.network import Network
from harness.protocol import Trace

_UPDATE = "update_state_with_accepted_tokens"


def _and_look(look: Callable[[Any], None], update: Callable[..., None], state: Any, *given: Any) -> None:
    update(state, *given)
    look(state)


def _decode_watched(subject: Subject, case: Case, look: Callable[[Any], None]) -> Trace:
    """Decode a case, and look at the state after every update."""
    watched = {_UPDATE: lambda update: partial(_and_look, look, update)}
    return subject.spied(case, **watched).decode(case.request, case.noise())


@law("state.sync", _UPDATE, "cache", "accumulate", "next_input")
def sync(subject: Subject, case: Case) -> bool:
    """After every round the whole state equals that of a sequential run over the committed prefix."""
    oracle.needs_exact(case, "nothing says how far rounding moves keys and values")
    taken: list[oracle.Snapshot] = []
    decoded = _decode_watched(subject, case, lambda state: taken.append(oracle.snapshot(state)))
    require(bool(taken), "the decode never updated its state")
    models = case.models
    networks: dict[str, Network] = {"draft": models.draft, "target": models.target}
    runs = {name: oracle.run_over(network, models.vae, case, decoded.tokens_BL) for name, network in networks.items()}
    for k, state in enumerate(taken):
        oracle.check_snapshot(state, case, runs, decoded.tokens_BL, f"update {k}")
    require(taken[-1].done == [case.pyramid.S] * case.B, f"the last update leaves {taken[-1].done} scales final")
    return any(turn.corrected for turn in decoded.turns) and len(taken) > 1


@law("state.poison", _UPDATE, "cache", "forward_window")
def poison(subject: Subject, case: Case) -> bool:
    """Rejected cache slots and inputs are never read: poisoned with NaN they change nothing."""
    expected = subject.decode(case)
    poisoned = 0

    def spoil(state: Any) -> None:
        nonlocal poisoned
        oracle.snapshot(state)
        pyramid = case.pyramid
        for image, done in enumerate(state.done):
            for side in (state.draft, state.target):
                side.cache.kv[:, :, case.request.rows_of(image), :, side.cache.lengths[image] :] = torch.nan
            state.raw_BLC[image, pyramid.end(min(done, pyramid.S - 1)) :] = torch.nan
            poisoned += done < pyramid.S

    actual = _decode_watched(subject, case, spoil)
    require_tokens(actual.tokens_BL, expected.tokens_BL, "rejected slots poisoned with NaN")
    require_equal("f_hat", actual.f_hat_BCPP, expected.f_hat_BCPP, "rejected slots poisoned with NaN")
    return poisoned > 0


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


@law("state.latent", "accumulate", "next_input")
def latent(subject: Subject, case: Case) -> bool:
    """f_hat and next input are the plain ones; arguments are neither changed nor aliased."""
    parts = subject.parts(case, "accumulate", "next_input")
    pyramid, quantizer = case.pyramid, case.models.vae.quantizer
    tokens_BL = case.random_tokens()
    f_hat = torch.zeros(case.B, *case.models.target.config.latent, dtype=torch.float64, device=case.at)
    for si in pyramid:
        idx_Bl = tokens_BL[:, pyramid.draws.span(si)]
        before, tokens_before = f_hat.clone(), idx_Bl.clone()
        after = parts.accumulate(f_hat, idx_Bl, si, quantizer, pyramid)
        codes = quantizer.codes(idx_Bl, *pyramid.sides[si])
        expected = case.steps.accumulate(before, codes, si, quantizer, pyramid)
        require_equal("f_hat", after, expected, f"after scale {si}", FLOAT64)
        arguments = {"f_hat argument": f_hat, "tokens argument": idx_Bl}
        require_same(arguments, {"f_hat argument": before, "tokens argument": tokens_before}, f"scale {si}")
        require(not _share(after, f_hat), f"f_hat after scale {si} is the argument's memory")
        f_hat = expected
        if si + 1 < pyramid.S:
            f_hat_before = f_hat.clone()
            raw_BlC = parts.next_input(f_hat, si + 1, pyramid)
            expected_BlC = case.steps.next_input(f_hat_before, si + 1, pyramid)
            require_equal("next input", raw_BlC, expected_BlC, f"scale {si + 1}", FLOAT64)
            require_equal("f_hat argument", f_hat, f_hat_before, f"next input of scale {si + 1}")
            require(not _share(raw_BlC, f_hat), f"the next input of scale {si + 1} is f_hat's memory")
    return pyramid.S > 1


@law("state.cache", "new_cache")
def cache(subject: Subject, case: Case) -> bool:
    """Under any passes and rollbacks a cache returns each image's own positions, in order."""
    parts, network, generator = subject.parts(case, "new_cache"), case.models.target, case.generator()
    config, B, L = network.config, max(2, case.B), case.pyramid.L
    # a model of it: the positions of every image, one (layer, key or value, half, H, c) each
    real, model = parts.new_cache(network, B), [list[Tensor]() for _ in range(B)]

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    for step in range(8):
        length = len(model[below(B)])
        group = [image for image in range(B) if len(model[image]) == length][: 1 + below(B)]
        if length < L:
            n = 1 + below(L - length)
            shape = (config.depth, 2, 2 * len(group), config.H, n, config.D // config.H)
            kv = torch.randn(shape, generator=generator, dtype=network.dtype).to(case.at)
            window = real.window(group)
            actual = [window.extend(layer, *kv[layer]) for layer in range(config.depth)]
            window.commit(length + n)
            for k, image in enumerate(group):  # conditional half first
                model[image] += kv[:, :, [k, len(group) + k]].unbind(4)
            expected = torch.stack([torch.stack(model[image], 4) for image in group], 3).flatten(2, 3)
            for layer, (keys, values) in enumerate(actual):
                names = {"keys": expected[layer, 0], "values": expected[layer, 1]}
                require_same({"keys": keys, "values": values}, names, f"step {step}, images {group}, layer {layer}")
        image, length_left = below(B), below(L + 1)
        real.rollback(image, length_left)
        del model[image][length_left:]
        lengths, due = list(real.lengths), [len(positions) for positions in model]
        require(lengths == due, f"step {step}: lengths {lengths}, not {due}", "cache")
    return True


@law("state.once", "decode", _UPDATE)
def once(subject: Subject, case: Case) -> bool:
    """Every scale of every image is made final exactly once, and f_hat is that of the tokens, after every scale."""
    decoded, pyramid = subject.decode(case), case.pyramid
    run = oracle.require_whole(decoded, case)
    if decoded.intermediates is not None:
        kept = decoded.intermediates.f_hat_SBCPP.to(run.f_hat_SBCPP.dtype)
        require_equal("f_hat of every scale", kept, run.f_hat_SBCPP, "as kept", oracle.allowed(case).f_hat)
    for image, rounds in enumerate(decoded.rounds):
        covered = [turn.first + k for turn in rounds for k in range(turn.finished)]
        require(covered == list(pyramid), f"rounds of image {image} finish scales {covered}")
        counted = sum(turn.accepted_tokens + turn.corrected_tokens + turn.bonus_tokens for turn in rounds)
        said = f"rounds of image {image} account for {counted} tokens of {pyramid.draws.L}"
        require(counted == pyramid.draws.L, said)
    return pyramid.S > 1


@law("state.exception", "decode")
def exception(subject: Subject, case: Case) -> bool:
    """A decode interrupted in mid-round leaves nothing to the next."""
    decoder = subject.decoder(case)
    expected = decoder.decode(case.request, case.noise())
    interrupted = 0
    for k in (1, 2, case.pyramid.S):
        try:
            decoder.decode(case.request, oracle.BrokenNoise(case.noise(), k))
        except oracle.Interrupted:
            interrupted += 1
        actual = decoder.decode(case.request, case.noise())
        require_tokens(actual.tokens_BL, expected.tokens_BL, f"after an exception at reading {k}")
        require_equal("f_hat", actual.f_hat_BCPP, expected.f_hat_BCPP, f"after an exception at reading {k}")
    return interrupted > 0


@law("state.untouched", "decode")
def untouched(subject: Subject, case: Case) -> bool:
    """Decoding changes neither the networks nor the decoder nor an earlier trace."""
    models = case.models
    named = models.named_weights()
    before = {name: w.clone() for name, w in named.items()}
    decoder = subject.decoder(case)
    first = decoder.decode(case.request, case.noise())
    kept_BL, kept_f_hat = first.tokens_BL.clone(), first.f_hat_BCPP.clone()
    other = replace(case.request, seed=case.seed + 1)
    try:
        decoder.decode(other, case.noise(other))
        require_tokens(first.tokens_BL, kept_BL, "first trace, after another decode")
        require_equal("f_hat", first.f_hat_BCPP, kept_f_hat, "first trace, after another decode")
        second = decoder.decode(case.request, case.noise())
    finally:
        changed = [name for name, w in named.items() if not torch.equal(w, before[name])]
        for name in changed:  # the networks are shared between cases: put them back
            named[name].copy_(before[name])
    require(not changed, f"decoding wrote into {', '.join(changed[:4])}")
    require_tokens(second.tokens_BL, kept_BL, "second decode of the same request")
    return True


@law("state.refusal", "decode")
def _refuses(subject: Subject, case: Case) -> bool:
    """A label that the networks do not have is refused, and so is `more_smooth` where f_hat is that of the tokens."""
    for policy in dict.fromkeys((case.policy, "rejection", "match:0.5")):
        with suppress(InputError, ValueError, IndexError):
            tried = replace(case.at_least(2), policy=policy, labels=(0,))
            if not subject.follows(tried):  # somebody else's need not read it
                continue
            soft = subject.decode(tried, request=replace(tried.request, more_smooth=True))
            run = oracle.run_over(tried.models.target, tried.models.vae, tried, soft.tokens_BL)
            of_tokens = (soft.f_hat_BCPP - run.f_hat_SBCPP[-1]).abs().max() <= oracle.allowed(tried).f_hat
            said = f"policy {tried.policy}: more_smooth was taken, and f_hat is that of the tokens"
            require(not of_tokens, said, "f_hat")
    try:
        subject.decode(case, request=replace(case.request, labels=(7,) * case.B))
    except (InputError, ValueError, IndexError):
        return True
    raise Broken("label 7 of 3 classes was decoded", "condition")
