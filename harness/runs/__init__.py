"""What a run is: its plan, its tasks, its file, its result; a case of it, repeated and reduced."""

from harness.runs._bisect import Bisection, CommitStore
from harness.runs._case import (
    MOST_CASES, KeptCase, cases_of, is_bundle, of_checkouts, read_bundle, recipe_words, repeat_line, write_bundle,
)  # fmt: skip
from harness.runs._cover import covering, covering_with, plan_of, requests_for, verify_coverage_plan
from harness.runs._database import FileKind, GrowingFile, check_trusted, is_begun, notes_of
from harness.runs._decodes import TERMS, Decodes, RunInterrupted, recorded_result, verify_decodes
from harness.runs._exercised import ADALN, Decode, Exercised, misstated, only_said
from harness.runs._identity import code_of, differences, identity_of, source_files, weights_of
from harness.runs._likelihood import LikelihoodTest
from harness.runs._plan import BatchSize, Plan, Task, cut_batches, default_batch, memory_note
from harness.runs._records import THE_LAW, BrokenLaw, JudgedRow, LawsTried, QualityClaims, to_json
from harness.runs._replay import (
    NOT_FOUND, OF_RECORDS, Answer, Replayed, locate_case, replay_case, shrink_case, take_line,
)  # fmt: skip
from harness.runs._result import Verification
from harness.runs._runfile import RUN_FILE, UNKEPT, RunFile, RunFileOptions, case_number, exhibit_of, pictures_of
from harness.runs._setting import COUNTS, SettingResult
from harness.runs._work import VerifyWork
