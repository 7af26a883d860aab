"""How far rounding may move a number: measured on the plain reference, kept, and stated in every result."""

from harness.rounding._budget import BUDGET_MARGIN, SHIPPED_BUDGETS, Allowance, Budget, load_budgets, save_budget
from harness.rounding._measure import (
    budget_for, check_explained, images_to_measure, joint_budget, measure_budget, quick_budget,
)  # fmt: skip
from harness.rounding._precision import (
    bytes_of_a_pass, certifying_networks, certifying_precision, free_on_cuda, images_per_certifying_pass, precision,
    precision_unchanged, set_precision,
)  # fmt: skip
