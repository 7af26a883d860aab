from hypothesis import settings

from tests.property.machine import DecodeMachine

COMPONENT = "state"
TestDecodeMachine = DecodeMachine.TestCase
TestDecodeMachine.settings = settings(stateful_step_count=50, max_examples=max(6, settings().max_examples // 3))
