"""What speculation costs and gains: time, target calls, memory, distance."""

from harness.bench._contest import Contest, contest_rows, sequential_sides
from harness.bench._files import Speed, policies_document, read_policies, read_speed
from harness.bench._policy_costs import PolicyRow, acceptance_sentences, measure_policies, policy_cells, policy_markdown
from harness.bench._scoreboard import Scoreboard, scoreboard, speed_table
from harness.bench._speed import Bench, Machine, SpeedRow
