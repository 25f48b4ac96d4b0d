import unittest

from pointsman import Policy, PolicyError, any_lane, types, unsupported
from pointsman.testing import ConfiguredPolicy, FakeFleet, FakeRequest
from wit_world.imports.state import StateError

FLEET = FakeFleet(["alpha"])


def advisor(**hooks):
    hooks = {"advise": lambda _self, _call: any_lane(), **hooks}
    return type("Advisor", (), hooks)()


class Log:
    def __init__(self):
        self.reports = []

    def write(self, _level, message):
        self.reports.append(message.split("\t"))


class Reports(unittest.TestCase):
    """What the component boundary reports of errors."""

    def guest(self, **hooks):
        from pointsman import guest

        self.log = guest.log = Log()
        # Natively, modules and clocks are needed after the start.
        guest.restrict = lambda _log: None
        guest.clock.begin = lambda *_: None
        guest.bind(Policy("p", "1", lambda _: advisor(**hooks)))
        guest.Lifecycle().configure("{}")
        return guest

    def error_of(self, advise):
        call = ConfiguredPolicy(Policy("p", "1", lambda _: advisor())).call(
            FakeRequest("hi"), FLEET
        )
        guest = self.guest(advise=advise)
        with self.assertRaises(PolicyError) as raised:
            guest.OnRequest().advise(call.context)
        return raised.exception.value

    def test_exception_is_reported_with_message_file_line_and_stack(self):
        def deep(value):
            return value["missing"]

        error = self.error_of(lambda _self, _call: deep({}))
        self.assertEqual(error, types.PolicyError_Other("KeyError: 'missing'"))
        [[prefix, file, line, message, *stack]] = self.log.reports
        self.assertEqual((prefix, message), ("pointsman:fault/1", "KeyError: 'missing'"))
        self.assertTrue(file.endswith("test_faults.py"), file)
        self.assertEqual(int(line), deep.__code__.co_firstlineno + 1)
        self.assertRegex(stack[0], r"^deep \(.*test_faults\.py:\d+\)$")

    def test_errors_of_the_policy_are_not_reported(self):
        def raise_unsupported(_self, _call):
            raise unsupported("no media")

        self.assertEqual(
            self.error_of(raise_unsupported), types.PolicyError_Unsupported("no media")
        )
        self.assertEqual(self.log.reports, [])

    def test_errors_of_the_state_are_errors(self):
        def fail(_self, _call):
            raise PolicyError(StateError.NOT_A_COUNTER)

        self.assertEqual(
            self.error_of(fail), types.PolicyError_Other("StateError: not-a-counter")
        )
        self.assertEqual(len(self.log.reports), 1)

    def test_results_that_are_not_advice_name_the_hook(self):
        error = self.error_of(lambda _self, _call: None)
        expected = "TypeError: advise returned None, not Advice"
        self.assertEqual(error, types.PolicyError_Other(expected))
        self.assertTrue(self.log.reports[0][1].endswith("test_faults.py"))

    def test_exceptions_of_background_hooks_are_reported_and_raised(self):
        def observe(_self, _now_ms, _done):
            raise ValueError("cannot observe")

        guest = self.guest(observe=observe)
        with self.assertRaises(ValueError):
            guest.OnComplete().observe(0, [])
        self.assertEqual(self.log.reports[0][3], "ValueError: cannot observe")

    def test_background_hooks_get_the_host_if_they_take_it(self):
        seen = []
        guest = self.guest(
            observe=lambda _self, now_ms, done, host: seen.append((now_ms, host)),
            tick=lambda _self, now_ms, seed: seen.append((now_ms, seed)),
        )
        guest.OnComplete().observe(5, [])
        self.assertEqual(guest.OnTick().tick(6, 7), [])
        self.assertEqual((seen[0][0], seen[1]), (5, (6, 7)))
        self.assertTrue(callable(seen[0][1].state.get))


class Fakes(unittest.TestCase):
    def test_state_has_expiry_limits_and_seeded_entries(self):
        seen = []

        def tick(_self, _now_ms, _seed, host):
            seen.append(host)

        policy = ConfiguredPolicy(
            Policy("p", "1", lambda _: advisor(tick=tick)),
            state={"seen": 7, "name": "é"},
        )
        state = policy.call(FakeRequest("hi"), FLEET).state
        self.assertEqual(state.get("seen"), b"\x07" + bytes(7))
        self.assertEqual(state.get("name"), "é".encode())
        self.assertEqual(state.increment("hits", 2, 1000), 2)
        for work, error in [
            (lambda: state.increment("name", 1, 0), StateError.NOT_A_COUNTER),
            (lambda: state.put("k" * 129, b"", 0), StateError.TOO_LONG),
        ]:
            with self.assertRaises(PolicyError) as raised:
                work()
            self.assertEqual(raised.exception.value, error)
        self.assertEqual(policy.tick(FLEET, now_ms=1000), [])
        self.assertIsNone(seen[0].state.get("hits"))

    def test_facts_follow_from_the_body(self):
        content = [{"type": "text", "text": "héllo"}, {"type": "image_url", "image_url": {}}]
        fields = {
            "stream": True,
            "tools": [{}],
            "max_tokens": 9,
            "response_format": {"type": "json_object"},
        }
        policy = ConfiguredPolicy(Policy("p", "1", lambda _: advisor()))
        call = policy.call(FakeRequest([("user", content)], fields=fields), FLEET)
        context = call.context
        self.assertTrue(context.streaming and context.has_tools)
        self.assertTrue(context.has_media and context.has_grammar)
        self.assertEqual((context.max_output_tokens, context.prompt_tokens), (9, 2))
        self.assertEqual(call.request.messages(), [types.MessageInfo(types.Role.USER, 6, 2, 1)])
        self.assertEqual(call.request.text(0, 0, 100), "héllo")


if __name__ == "__main__":
    unittest.main()
