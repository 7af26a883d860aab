"""What decoder, oracle and judge agree on: integers, numbers and records; no networks, no judgement."""
