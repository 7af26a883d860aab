"""One decode in this process.

Promise: whatever somebody else's decoder does, the answer is its trace or a judgement; bad input alone is raised.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from harness.errors import InputError, NoiseError, NonFiniteError, text_of
from harness.judge.form import malformed
from harness.judge.verdict import Divergence, Judgement
from harness.models.pair import ModelPair
from harness.protocol.decoder import Implementation
from harness.protocol.request import Request
from harness.protocol.trace import Trace


def run(implementation: Implementation, models: ModelPair, request: Request) -> Trace | Judgement:
    """Decode under fresh noise; a decoder that crashes, meets a non-finite tensor or returns no trace is judged, too.

    Raises:
        InputError: the decoder refuses the request.
    """
    try:
        trace = implementation.decode(request, models.noise(request))
        if (wrong := malformed(models, request, trace)) is None:
            return trace
        found = Divergence("trace", wrong, request.seed)
    except InputError:
        raise
    except NonFiniteError as error:
        found = Divergence("non-finite", str(error), request.seed)
    except NoiseError as error:
        found = Divergence("noise", str(error), request.seed)
    except (Exception, SystemExit) as error:  # of whatever kind: the decoder is somebody else's code
        frame = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {text_of(error)} in {frame.name}, {Path(frame.filename).name}:{frame.lineno}"
        found = Divergence("crash", " ".join(detail.split()), request.seed)
    return Judgement(request.B, defects=[found])
