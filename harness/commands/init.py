"""`sdvar-harness init`: a complete small decoder of one's own, to change."""

from pathlib import Path
from typing import Annotated

from harness.commands.records import Group, Option, command
from harness.errors import InputError
from harness.files import check_outputs, write_whole

TEMPLATE = Path(__file__).with_name("mydecoder.txt")


class NewModule(Group):
    """What is written."""

    path: Annotated[Path, Option("File to write, e.g. mydecoder.py; one that is there is kept.", argument=True)]


@command
def init(module: NewModule) -> None:
    """Write a decoder that runs and is IDENTICAL, with the places marked where one's own code goes."""
    from harness.report import plain_console, say

    path = module.path
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise InputError("path", str(path), "must be a Python module, NAME.py", "pass mydecoder.py")
    target = check_outputs({"path": path}, {})["path"]
    if target.exists():
        raise InputError("path", str(path), "exists already", "pass another name, or move it away")
    write_whole(target, TEMPLATE.read_bytes().replace(b"NAME:factory", f"{path.stem}:factory".encode()))
    line = f"sdvar-harness verify --implementation {path.stem}:factory --seeds 0 --labels 0,1 --draft-len 5"
    say(plain_console(), f"{path} is written; try: {line}")
