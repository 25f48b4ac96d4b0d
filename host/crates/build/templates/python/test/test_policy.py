import unittest

from pointsman import PolicyError, types
from pointsman.testing import FakeFleet, FakeRequest, Tested
from policy import policy

FLEET = FakeFleet(["quick", "reader"])


class PolicyTest(unittest.TestCase):
    def test_a_long_prompt_goes_to_the_long_lane(self) -> None:
        tested = Tested(policy, {"long-lane": "reader", "long-tokens": 3})
        advice = tested.advise(FakeRequest("a prompt of more than three tokens"), FLEET)
        self.assertEqual(advice.lanes, types.LaneAdvice_Only([1]))

    def test_a_mistake_in_the_configuration_is_named(self) -> None:
        with self.assertRaises(PolicyError) as raised:
            Tested(policy, {"long-lane": 5})
        self.assertEqual(raised.exception.value, types.PolicyError_InvalidConfig("`long-lane` must be a text"))


if __name__ == "__main__":
    unittest.main()
