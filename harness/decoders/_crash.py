"""Where somebody else's code raised: part, file and line.

Promise: file and line are those of the decoder's own code, as far as the exception went through any: no library's, and
none of the harness's.
"""

import os
import sysconfig
import traceback
from pathlib import Path

from harness.errors import text_of
from harness.judge import CodeLine

LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
PACKAGE = str(Path(__file__).parents[1]) + os.sep
MOST_TRACEBACK = 4000  # characters, its end
LAWS = str(Path(PACKAGE, "laws")) + os.sep


def crash_of(error: BaseException) -> str:
    """Describe an exception of a decoder, with the part of the innermost frame whose name, or module, tells one.

    Laws call parts, and are none themselves.
    """
    frames = [frame for frame in _frames(error) if not frame.filename.startswith(LAWS)]
    names = (name.lower() for each in reversed(frames) for name in (each.name, Path(each.filename).stem))
    part = next((part for name in names for word, part in WORDS.items() if word in name), "")
    return f"{raised_in(error)}{f': part {part}' if part else ''}"


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception of a decoder, without the frame of the harness that called it."""
    lines = traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
    return "".join(lines)[-MOST_TRACEBACK:]


def raised_in(error: BaseException) -> str:
    """Describe an exception by the last frame of the decoder's own code: not Python's, not a library's, not ours."""
    frame = _own_frames(error)[-1]
    where = f"{frame.name}, {Path(frame.filename).name}:{frame.lineno}"
    return " ".join(f"{_said(error)} in {where}".split())


def line_of_crash(error: BaseException) -> CodeLine:
    """Return the line that an exception of a decoder was raised in, as the one where its decode goes wrong."""
    frames = _own_frames(error)[::-1]
    stack = tuple(f"{each.filename}:{each.lineno}, in {each.name}: {each.line}" for each in frames)
    own, said = frames[0], _said(error)
    return CodeLine(own.filename, own.lineno or 0, own.name, own.line or "", said, "the decode ends here", stack=stack)


def place_of_import(error: BaseException) -> str:
    """Return file and line of somebody's code at which an import failed; empty where no code of theirs ran."""
    frame = _own_frames(error)[-1]
    file, line = frame.filename, frame.lineno
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        file, line = error.filename, error.lineno
    return "" if file.startswith("<") else f"{file}:{line}" if line else file


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {text_of(error)[:500]}".split())


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = _frames(error)
    return [frame for frame in frames if not frame.filename.startswith(PACKAGE)] or frames


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames below the caller's that are no library's, if there are any."""
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not frame.filename.startswith((*LIBRARIES, "<"))] or frames


# Words of functions and modules, ours and the report's, and the part that they belong to; the first that fits holds.
WORDS = {
    "keep_drafted": "accept", "residual": "accept", "accept": "accept", "rejection": "accept", "outcome": "accept",
    "policies": "accept", "cache": "cache", "level_of": "cache", "mask": "mask", "query": "query", "guid": "guidance",
    "split": "split",
    "filter": "filter", "draw": "draw", "race": "draw", "accumulate": "f_hat", "latent": "f_hat",
    "next_input": "next input", "condition": "condition", "draft_len": "draft length", "update": "update",
    "noise": "noise", "quantizer": "quantiser", "verify": "verify", "draft": "draft", "transformer": "network",
}  # fmt: skip
