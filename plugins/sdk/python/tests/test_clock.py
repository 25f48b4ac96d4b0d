import datetime as datetime_module
import os
import random
import time
import unittest

from pointsman import clock

NOW_MS = 1_700_000_000_123


class Clock(unittest.TestCase):
    """The clock and the random numbers of a component."""

    def setUp(self):
        # What `install` replaces is put back, because the tests themselves need it.
        kept = [(time, name, getattr(time, name)) for name in dir(time)]
        kept += [(os, "urandom", os.urandom), (random.Random, "seed", random.Random.seed)]
        kept += [(datetime_module, "datetime", datetime_module.datetime)]
        kept += [(random, name, value) for name, value in vars(random).items()]
        kept += [(clock._moment, "is_started", False)]
        for module, name, value in kept:
            if not name.startswith("__"):
                self.addCleanup(setattr, module, name, value)
        clock.install()

    def at(self, now_ms, seed=7):
        clock.begin(now_ms, seed)

    def test_calls_have_their_own_time(self):
        from datetime import date, datetime, timedelta, timezone

        self.assertLess(abs(time.time() - datetime.now().timestamp()), 60)
        self.at(NOW_MS)
        self.assertEqual(datetime.now(timezone.utc).timestamp() * 1000, NOW_MS)
        self.assertEqual(datetime.utcnow(), datetime(2023, 11, 14, 22, 13, 20, 123_000))
        self.assertEqual(date.today(), date.fromtimestamp(NOW_MS // 1000))
        self.assertEqual((time.time(), time.time_ns() // 1_000_000), (NOW_MS / 1000, NOW_MS))
        self.assertEqual(time.gmtime().tm_min, 13)
        self.assertIsInstance(datetime.now() + timedelta(1), datetime)
        self.at(NOW_MS + 1000)
        self.assertEqual(time.strftime("%S"), "21")

    def test_each_use_of_what_a_component_lacks_is_an_error(self):
        self.at(NOW_MS)
        for use in (time.monotonic, time.perf_counter_ns, lambda: time.sleep(1)):
            with self.assertRaises(RuntimeError):
                use()
        with self.assertRaises(RuntimeError):
            os.urandom(8)
        self.at(None)
        for use in (time.time, time.gmtime, datetime_module.datetime.now):
            with self.assertRaises(RuntimeError):
                use()

    def test_random_numbers_follow_from_the_seed_of_the_call(self):
        def draw(seed):
            self.at(NOW_MS, seed)
            return [random.random(), random.randint(1, 10**9), random.Random().random()]

        self.assertEqual(draw(7), draw(7))
        self.assertNotEqual(draw(7), draw(8))

    def test_functions_of_random_are_seeded_once_in_each_call(self):
        expected = random.Random(7)
        self.at(NOW_MS)
        self.assertEqual(random.randrange(1000), expected.randrange(1000))
        self.assertEqual(random.choice("abcdef"), expected.choice("abcdef"))
        # A policy's own seed stays until the next call.
        self.at(NOW_MS)
        random.seed(8)
        self.assertEqual(random.random(), random.Random(8).random())
        # A pair of numbers does not outlive the call that drew it.
        self.at(NOW_MS)
        first = random.gauss(0, 1)
        self.at(NOW_MS)
        self.assertEqual(random.gauss(0, 1), first)


if __name__ == "__main__":
    unittest.main()
