import unittest

from pointsman import (
    Config,
    Lanes,
    Policy,
    PolicyError,
    Random,
    any_lane,
    blend,
    edits,
    only,
    reject,
    scores,
    types,
    unsupported,
)
from pointsman.testing import (
    ConfiguredPolicy,
    FakeFleet,
    FakeLane,
    FakeRequest,
    fake_finished,
)

FLEET = FakeFleet(["alpha", FakeLane("beta", info={"labels": [("tier", "cheap")]})])


class Idle:
    """An advisor without an opinion."""

    def advise(self, call):
        return any_lane()


class Sdk(unittest.TestCase):
    def test_random_numbers_are_the_same_in_all_sdks(self):
        random = Random(1234567)
        self.assertEqual(
            [random.next() for _ in range(3)],
            [6457827717110365317, 3203168211198807973, 9817491932198370423],
        )
        self.assertEqual(Random(42).below(6), 4)
        self.assertEqual(Random(1).below(0), 0)

    def test_policy_learns_all_attempts_and_its_own_notes(self):
        class Learning(Idle):
            def learn(self, now_ms, done, host):
                for one in done:
                    failed = [each.status for each in one.attempts if each.status != 200]
                    host.metrics.add(f"{one.notes[0].value.value}: {failed}", now_ms)

        policy = ConfiguredPolicy(Policy("p", "1", lambda _: Learning()))
        attempts = [
            types.Attempt(0, types.TryResult.SERVER_ERROR, 500, 0, 3),
            types.Attempt(1, types.TryResult.OK, 200, 0, 5),
        ]
        policy.learn([fake_finished(attempts, {"session": "s1"}, lane=1)], now_ms=7)
        self.assertEqual(policy.counters, {"s1: [500]": 7})
        single = types.Attempt(0, types.TryResult.OK, 200, 0, 9)
        self.assertEqual(fake_finished(total_ms=9).attempts, [single])

    def test_request_has_a_deadline_and_finds_patterns_and_the_fleet_the_lanes_left(self):
        seen = []

        class Reading(Idle):
            def advise(self, call):
                found = call.request.find_any(["dog", "CATS", "cat"], True)
                found = [(one.pattern, one.message, one.offset) for one in found]
                seen.append((call.request.deadline_ms(), found, call.fleet.lanes_left()))
                return any_lane()

        policy = ConfiguredPolicy(Policy("p", "1", lambda _: Reading()))
        request = FakeRequest("é: cats", deadline_ms=900)
        policy.advise(request, FakeFleet(["a", "b"], left=["b"]))
        policy.advise(FakeRequest("x"), FakeFleet(["a", "b"]))
        self.assertEqual(seen, [(900, [(1, 0, 4), (2, 0, 4)], [1]), (None, [], [0, 1])])

    def test_fake_request_has_the_endpoint_that_the_test_chooses(self):
        seen = []

        class Advisor:
            def advise(self, call):
                seen.append((call.request.endpoint_kind(), call.context.endpoint))
                return any_lane()

        policy = ConfiguredPolicy(Policy("p", "1", lambda _: Advisor()))
        policy.advise(FakeRequest("hi"), FLEET)
        policy.advise(FakeRequest("hi", endpoint_kind="rerank"), FLEET)
        chat = types.Endpoint.CHAT_COMPLETIONS
        self.assertEqual(
            seen, [("chat-completions", chat), ("rerank", types.Endpoint.OTHER)]
        )

    def test_fake_request_has_the_key_and_limits_that_the_test_chooses(self):
        seen = []

        class Advisor:
            def advise(self, call):
                request = call.request
                seen.append((request.key_group(), request.key_name(), request.allowance().budget))
                return any_lane()

        policy = ConfiguredPolicy(Policy("p", "1", lambda _: Advisor()))
        policy.advise(FakeRequest("hi"), FLEET)
        budget = types.Remaining(1000, 50, 60_000)
        allowance = types.Allowance(None, None, budget)
        request = FakeRequest("hi", key_group="staff", key_name="k_1", allowance=allowance)
        policy.advise(request, FLEET)
        self.assertEqual(seen, [(None, None, None), ("staff", "k_1", budget)])

    def test_advice_builds_the_contract_record(self):
        advice = (
            only([1])
            .with_reason("so")
            .with_note("count", 3)
            .with_note("sure", True)
            .with_hint("h", "x")
            .with_priority(5)
            .with_flow("f")
            .with_max_wait(100, types.OnTimeout.REJECT)
            .with_fallback([0], types.Triggers.OVERLOADED, 9)
            .with_switching(types.Switching.NEVER)
            .with_edits(edits.set_field("/a", {"b": 1}), edits.set_header("x", "y"))
        )
        self.assertEqual(advice.lanes, types.LaneAdvice_Only([1]))
        self.assertEqual(
            advice.notes,
            [
                types.Note("why", types.Scalar_Text("so")),
                types.Note("count", types.Scalar_Int(3)),
                types.Note("sure", types.Scalar_Flag(True)),
            ],
        )
        self.assertEqual(advice.hints, [types.Note("h", types.Scalar_Text("x"))])
        self.assertEqual(advice.queue, types.QueueAdvice(5, "f", 100, types.OnTimeout.REJECT))
        self.assertEqual(
            advice.fallback,
            types.FallbackAdvice(types.Triggers.OVERLOADED, [types.FallbackStep(0, [])], 9),
        )
        self.assertEqual(advice.switching, types.Switching.NEVER)
        self.assertEqual(
            advice.edits,
            [types.Edit_SetField(("/a", '{"b": 1}')), types.Edit_SetHeader(("x", "y"))],
        )
        with self.assertRaisesRegex(TypeError, "`half`"):
            any_lane().with_note("half", 0.5)
        self.assertEqual(
            blend({"est-wait": 7}).lanes,
            types.LaneAdvice_Blend([types.MetricWeight(types.Metric.EST_WAIT, 7)]),
        )
        self.assertEqual(
            scores([(1, 900)]).lanes, types.LaneAdvice_Scores([types.LaneScore(1, 900)])
        )
        self.assertEqual(
            reject(429, "slow", "later", 3).reject, types.Rejection(429, "slow", "later", 3)
        )

    def test_objects_of_the_configuration_are_maps(self):
        config = Config.parse('{"budgets": {"a": 1, "b": 2}}')
        self.assertEqual(config.keys(), ["budgets"])
        self.assertEqual(config.integer_map("budgets"), {"a": 1, "b": 2})
        config.finish()

    def test_configuration_errors_name_the_key(self):
        def read(text):
            config = Config.parse(text)
            config.string("name")
            config.integer("count", 1, minimum=1, maximum=9)
            config.boolean("on")
            config.strings("list")
            config.string_map("map")
            config.integer_map("budgets", maximum=9)
            inner = config.section("inner")
            inner.boolean("deep")
            inner.finish()
            config.finish()

        for text, message in [
            ("{", "invalid JSON"),
            ("[]", "expected an object, found a list"),
            ('{"other": 1}', "other: unknown key"),
            ('{"name": 5}', "name: expected a string, found 5"),
            ('{"name": null}', "name: expected a string, found null"),
            ('{"count": 10}', "count: expected an integer from 1 to 9, found 10"),
            ('{"count": 1.5}', "count: expected an integer from 1 to 9, found 1.5"),
            ('{"count": true}', "count: expected an integer from 1 to 9, found true"),
            ('{"on": "yes"}', 'on: expected a boolean, found "yes"'),
            ('{"list": ["a", 5]}', "list: expected a list of strings, found a list"),
            ('{"map": {"a": 5}}', "map.a: expected a string, found 5"),
            ('{"budgets": {"a": 10}}', "budgets.a: expected an integer from 0 to 9, found 10"),
            ('{"inner": {"shallow": true}}', "inner.shallow: unknown key"),
            ('{"inner": []}', "inner: expected an object, found a list"),
        ]:
            with self.subTest(text), self.assertRaises(PolicyError) as raised:
                read(text)
            self.assertEqual(raised.exception.value, types.PolicyError_InvalidConfig(message))
        read(
            '{"name": "", "count": 9, "on": false, "list": [], "map": {}, "inner": {"deep": true}}'
        )

    def test_lane_ids_are_cached_per_topology(self):
        lookups = []

        class Fleet:
            def find(self, name):
                lookups.append(name)
                return 0 if name == "a" else None

        lanes = Lanes()
        for topology in [1, 1, 2]:
            request = FakeRequest("hi", context={"topology": topology})
            call = ConfiguredPolicy(Policy("p", "1", lambda _: Idle())).call(request, FLEET)
            call.fleet = Fleet()
            self.assertEqual((lanes.find(call, "a"), lanes.find(call, "b")), (0, None))
        self.assertEqual(lookups, ["a", "b", "a", "b"])

    def test_fakes_behave_as_the_contract_specifies(self):
        request = FakeRequest("héllo FN main", headers={"X-A": "1"}, tenant="t")
        call = ConfiguredPolicy(Policy("p", "1", lambda _: Idle())).call(request, FLEET)
        self.assertEqual(call.context.prompt_tokens, 4)
        self.assertEqual(call.request.header("x-a"), "1")
        self.assertEqual(call.request.text(0, 2, 4), "llo")
        self.assertEqual(call.request.text(9, 0, 4), "")
        self.assertTrue(call.request.contains("fn main", True))
        self.assertFalse(call.request.contains("fn main", False))
        self.assertEqual(
            call.request.field("/messages/0/role", 10), types.FieldValue_Json('"user"')
        )
        self.assertIsInstance(
            call.request.field("/messages/0/content", 2), types.FieldValue_TooLarge
        )
        self.assertEqual(call.request.field("/nothing", 2), types.FieldValue_Absent())
        self.assertEqual(call.fleet.with_label("tier", "cheap"), [1])
        self.assertEqual(call.fleet.candidates(), [0, 1])
        self.assertIsNone(call.fleet.stat(7))


class ComponentBoundary(unittest.TestCase):
    """The exports of a policy component."""

    def bind(self, advise):
        from pointsman import guest

        advisor = type("Advisor", (), {"advise": lambda _, call: advise(call)})()
        guest.bind(Policy("p", "1", lambda _: advisor, ["h"]))
        # Natively, modules and clocks are needed after the start.
        guest.restrict = lambda _log: None
        self.lines = []
        write = lambda level, message: self.lines.append(message)
        guest.log = type("Log", (), {"write": staticmethod(write)})
        guest.Lifecycle().configure("{}")
        return guest

    def raised_by(self, advise):
        call = ConfiguredPolicy(Policy("p", "1", lambda _: Idle())).call(FakeRequest("hi"), FLEET)
        with self.assertRaises(PolicyError) as raised:
            self.bind(advise).OnRequest().advise(call.context)
        return raised.exception.value

    def test_exceptions_become_contract_errors(self):
        def raise_unsupported(_):
            raise unsupported("no media")

        self.assertEqual(
            self.raised_by(raise_unsupported), types.PolicyError_Unsupported("no media")
        )
        self.assertEqual(
            self.raised_by(lambda _: {}["x"]), types.PolicyError_Other("KeyError: 'x'")
        )

    def test_describe_and_missing_hooks(self):
        guest = self.bind(lambda _: any_lane())
        described = guest.Lifecycle().describe()
        self.assertEqual((described.name, described.version, described.hints), ("p", "1", ["h"]))
        self.assertEqual(guest.OnTick().tick(0, 0), [])
        self.assertIsNone(guest.OnComplete().observe(0, []))
        self.assertIsNone(guest.OnOutcome().learn(0, []))


if __name__ == "__main__":
    unittest.main()
