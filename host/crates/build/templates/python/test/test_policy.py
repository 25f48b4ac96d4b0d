import unittest

from pointsman import PolicyError, types
from pointsman.testing import ConfiguredPolicy, FakeFleet, FakeRequest
from policy import policy

FLEET = FakeFleet(["quick", "reader"])


class PolicyTest(unittest.TestCase):
    def test_long_prompt_goes_to_the_long_lane(self) -> None:
        configured = ConfiguredPolicy(policy, {"long-lane": "reader", "long-tokens": 3})
        advice = configured.advise(FakeRequest("a prompt of more than three tokens"), FLEET)
        self.assertEqual(advice.lanes, types.LaneAdvice_Only([1]))

    def test_invalid_configuration_names_the_key(self) -> None:
        with self.assertRaises(PolicyError) as raised:
            ConfiguredPolicy(policy, {"long-lane": 5})
        expected = types.PolicyError_InvalidConfig("long-lane: expected a string, found 5")
        self.assertEqual(raised.exception.value, expected)


if __name__ == "__main__":
    unittest.main()
