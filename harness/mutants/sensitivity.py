"""Planted bugs of sensitivity: inputs that are ignored, wholly or in part."""

from harness.decoders import Factory
from harness.mutants._mutant import Alone, Mutant, asked_for, labelled, patched
from harness.protocol import Request

# fmt: off
SEED = Mutant("sensitivity.seed", "the seed is ignored", "a generator seeded once for good", asked_for(seed=0))
SEED_BITS = Alone("sensitivity.seed-bits", "the seed is cut to 32 bits", "another library's type of seeds",
    asked_for(seed=lambda request: request.seed % 2**32))
SEED_FLOAT = Alone("sensitivity.seed-float", "the seed is rounded to 24 bits", "a seed that went through float32",
    asked_for(seed=lambda request: request.seed % 2**24))
LABEL = Mutant("sensitivity.label", "the label is ignored", "conditional rows built from the unconditional class",
    asked_for(labels=lambda request: (3,) * request.B))
PAIRS = Mutant("sensitivity.label-pairs", "labels 0 and 1 are one, and 2 and 3", "a class table of another data set",
    labelled(lambda labels: tuple(label // 2 * 2 for label in labels)))
CFG = Mutant("sensitivity.cfg", "the guidance value is ignored", "a default that wins", asked_for(cfg=1.5))
NO_CFG = Mutant("sensitivity.no-cfg", "guidance is off", "a flag that is never passed on", asked_for(cfg=0.0))
FILTERS = Mutant("sensitivity.filters", "top_k and top_p are ignored", "options parsed and dropped",
    asked_for(top_k=0, top_p=0.0))
NUCLEUS = Mutant("sensitivity.nucleus", "top_p is ignored", "an early return after top-k", asked_for(top_p=0.0))
ADDRESSES = Mutant("sensitivity.addresses", "the images' noise addresses are ignored",
    "an index in the batch taken for the image", asked_for(images=None))
SHIFTED = Mutant("sensitivity.low-addresses", "addresses are taken modulo 10", "one digit of a counter",
    asked_for(images=lambda request: tuple(image % 10 for image in request.image_ids)))
# fmt: on


def _one_filter(at: int) -> Factory:
    def chosen(request: Request, si: int) -> tuple[int, float]:
        return request.filters[at] if request.filters else (request.top_k, request.top_p)

    return patched({"harness.protocol._request:Request.filter": chosen})


# fmt: off
FIRST_FILTER = Mutant("sensitivity.first-filter", "all scales have the first one's filter", "a filter read once",
    _one_filter(0))
LAST_FILTER = Mutant("sensitivity.last-filter", "all scales have the last one's filter", "a loop's variable, after it",
    _one_filter(-1))
