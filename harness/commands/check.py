"""`sdvar-harness check`: does a certificate hold, here?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands import _options as options
from harness.commands._options import BUDGETS, JUDGED, PLACE, TESTED, Mode, Pair
from harness.commands.records import Group, Option, command
from harness.files import check_readable

NEVER = ("reasons for INCONCLUSIVE", "laws", "evidence", "closest draws")  # of any certificate


class CertificateCheck(Group, panel=JUDGED):
    """Which certificate, and how it is checked."""

    file: Annotated[Path, Option("File of verify --certificate.", argument=True)]
    key: Annotated[Path | None, Option("Public key (PEM, Ed25519) of whom you trust, for a signed one.")] = None
    decode: Annotated[bool, Option("Decode its images by the decoder that you name, too.", panel=TESTED)] = False
    timeout: Annotated[float, Option("Seconds of a decode.", rare=True, panel=TESTED)] = options.TIMEOUT_S
    in_process: options.InProcess = False
    device: Annotated[str, Option("cpu, cuda or cuda:N.", shown="the certificate's, or cpu", panel=PLACE)] = ""
    budgets: options.Budgets = BUDGETS


@command
def check_file(asked: CertificateCheck, networks: Pair, tested: options.UnderTest) -> None:
    """Check a certificate: its form, its signature, and its challenged images, computed anew by the reference.

    The answer is REPRODUCED, REPRODUCED UP TO TIES, REFUTED, or UNVERIFIABLE and what is not at hand. Nothing that a
    certificate names is run: networks, and with --decode the decoder, are those that you name.

    Exit status: 0 it is reproduced, 1 it is refuted, 2 bad input, 3 it cannot be verified.
    """
    from harness.certificate import read_certificate

    check_readable(asked.budgets, "budgets", "pass a file of sdvar-harness calibrate", "is not there")
    made, subject, is_signed = read_certificate(asked.file, asked.key)

    import torch

    from harness.certificate.checked import Again, check_certificate, check_statement, unchecked
    from harness.commands._inputs import load_models, options_tested
    from harness.decoders import Limits, Terms
    from harness.report import plain_console, say

    check_statement(made, str(asked.file))
    device = asked.device or ("cuda" if made.platform.get("device") == "cuda" and torch.cuda.is_available() else "cpu")
    mode = Mode(device, made.precision.get("tf32_matmul", False), made.networks.dtype, made.networks.draft_dtype)
    models = load_models(networks, mode, decoder=str(made.decoder.get("implementation")))
    again = None
    if asked.decode:
        terms = Terms(in_process=asked.in_process, limits=Limits(asked.timeout), budgets=asked.budgets.absolute())
        again = Again(tested.implementation, options_tested(tested), terms)
    found = check_certificate(made, subject, models, asked.budgets, again)
    console = plain_console()
    who = f"signed with the key of {asked.key}" if is_signed else "unsigned: its digest shows accidents, and no more"
    say(console, f"{asked.file}: {made.verdict} of {made.decoder.get('implementation')}; {who}")
    missing = ", ".join(map(str, made.exercised.get("missing", ())))
    if missing:
        say(console, f"not asked: {missing}")
    of = f"{found.images} of {len(made.places)} images computed anew"
    drawn = [] if again or not found.images else ["that its decoder draws these tokens: pass --decode"]
    say(console, f"not checked: {'; '.join([', '.join(NEVER), *unchecked(made), *drawn])}")
    say(console, f"{found.answer.value}: {'; '.join(filter(None, (found.why, of)))}")
    raise typer.Exit(found.answer.exit_status)
