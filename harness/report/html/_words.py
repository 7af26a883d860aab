"""What verdicts, contracts, tensors and components mean, for somebody who meets them for the first time."""

from __future__ import annotations

from harness.judge import Verdict

MEANS = {
    "token-identical": "Contract A, token-identical: with the same seed the decoder must give exactly the tokens, and "
    "so the image, that the large model gives when it decodes alone, scale by scale.",
    "distribution-identical": "Contract B, distribution-identical: the decoder's images must follow the same law "
    "as sequential decoding. Single images may differ; how often each kind comes may not.",
    "quality-preserving": "Contract C, quality-preserving: the decoder trades exactness for speed by a stated rule. It "
    "is never called lossless; how far its images are from the sequential ones is measured.",
}
VERDICTS = {
    Verdict.IDENTICAL: "The decoder is right: every token that it drew is the one that sequential decoding draws.",
    Verdict.TIE: "The decoder is right: every token is the sequential one, or a certified tie, where two candidates "
    "are so close that rounding alone decides between them.",
    Verdict.CONSISTENT: "What can be checked on single images holds: every scale was finished exactly once, and the "
    "large model's numbers are right on the decoder's own tokens. The same tokens are not claimed.",
    Verdict.DEFECT: "The decoder is wrong: something differs from sequential decoding that rounding cannot explain.",
    Verdict.INCONCLUSIVE: "Nothing is proved: too little was decoded, drafted or shown to say that the decoder is "
    "right. Nothing wrong was found either.",
}
TONE = dict.fromkeys(Verdict, "good") | {Verdict.DEFECT: "bad", Verdict.INCONCLUSIVE: "open"}
COMPARED = {
    "tokens": "the picture's building blocks: 680 small integers an image on the usual ten scales",
    "final f_hat": "the latent map that the tokens add up to, from which the pixels are made",
    "f_hat of every scale": "that map after each scale",
    "inputs": "what the large model was fed at every position",
    "rows": "what it answered, for the label and without it",
    "guided logits": "the two answers combined by guidance: the scores that tokens are drawn by",
    "calls and rows": "how often the large model was asked, and for how many positions",
}
COMPONENTS = {
    "positions": "The inputs sit at other positions, or are marked as another scale's, than they should be.",
    "condition": "The model was asked for another label, or with the labelled and unlabelled halves mixed up.",
    "rows": "The rows of the batch are mixed up: an image met another row's numbers.",
    "query": "The input of the large model was built from something else than the map so far.",
    "guidance": "Guidance combines the labelled and unlabelled answers wrongly.",
    "next input": "The input was built from another map than the one so far, or from it resized otherwise.",
    "split": "The rows of a pass were cut at other positions than those of their scale.",
    "head": "The last layer of the large model was given something else than what the layers before it made.",
    "network": "The large model itself computes something else: nothing else can reach its first scale.",
    "mask": "A position sees what it must not see, or misses what it must: the attention mask.",
    "mask or cache": "A position sees what it must not see, or misses what it must: the attention mask or the cache.",
    "cache": "The cache of earlier positions holds something wrong.",
    "accept": "A drafted token was accepted although the large model draws another one.",
    "law": "The tokens are drawn by another law than the large model's: by which one, the bets on them say.",
    "draw": "The scores are right and the token is not: the filter, the draw or its random numbers are wrong.",
    "f_hat": "The map that tokens add up to was added up wrongly.",
    "accumulation": "The map that tokens add up to was added up wrongly.",
    "scheduling": "Scales were finished twice, never, or in the wrong order.",
    "counts": "The stated numbers of calls or rows cannot be true.",
    "trace": "What the decoder handed back has another form than documented.",
    "crash": "The decoder raised an error.",
    "process": "The decoder's process died, hung or took too much memory.",
    "precision": "The decoder computes in fewer bits than it was given, or changed a process-wide setting.",
    "environment": "The decoder left the process changed.",
    "weights": "The networks hold numbers that are none, or were written into.",
    "noise": "A random number was read in a way that the contract forbids.",
    "tie": "No mistake: two candidates are closer than rounding can tell apart.",
    "unknown": "Where it comes from cannot be told from what the decoder shows.",
}
MARKS = {  # letter of a mark -> class, what it means, what so many of them are
    "=": ("agree", "agrees with the reference", "agree"),
    "t": ("tie", "tie: rounding decides", "tied"),
    "x": ("wrong", "wrong", "wrong"),
    ".": ("unclaimed", "another one than the reference's, which is not claimed", "others"),
}


def contracts(claimed: str) -> list[str]:
    """Return what the claimed contracts mean; `claimed` as in `Verification.contract`."""
    return [text for name, text in MEANS.items() if name in claimed]
