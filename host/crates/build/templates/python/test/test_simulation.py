"""The built component in the program `pointsman`: golden cases and scenarios."""

import os
import unittest

from pointsman.simulation import failures, has_pointsman, run_tests


class SimulationTest(unittest.TestCase):
    @unittest.skipUnless(os.path.exists("policy.wasm") and has_pointsman(), "not built")
    def test_golden_cases_and_scenarios_pass(self) -> None:
        self.assertEqual(failures(run_tests(".")), [])


if __name__ == "__main__":
    unittest.main()
