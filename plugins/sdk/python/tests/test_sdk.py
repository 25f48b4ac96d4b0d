import unittest

from pointsman import (
    Config, Lanes, Policy, PolicyError, Random, any_lane, blend, edits, only, reject, scores, types, unsupported,
)
from pointsman.testing import FakeFleet, FakeLane, FakeRequest, Tested

FLEET = FakeFleet(["alpha", FakeLane("beta", info={"labels": [("tier", "cheap")]})])


class Sdk(unittest.TestCase):
    def test_the_same_numbers_follow_from_a_seed_as_in_all_sdks(self):
        random = Random(1234567)
        self.assertEqual(
            [random.next() for _ in range(3)], [6457827717110365317, 3203168211198807973, 9817491932198370423]
        )
        self.assertEqual(Random(42).below(6), 4)
        self.assertEqual(Random(1).below(0), 0)

    def test_advice_is_the_contract_s_record(self):
        advice = (
            only([1]).because("so").note("count", 3).note("sure", True).hint("h", "x").with_priority(5).in_flow("f")
            .waiting_at_most(100, types.OnTimeout.REJECT).falling_back_to([0], types.Triggers.OVERLOADED, 9)
            .with_switching(types.Switching.NEVER).editing(edits.set_field("/a", {"b": 1}), edits.set_header("x", "y"))
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
            advice.fallback, types.FallbackAdvice(types.Triggers.OVERLOADED, [types.FallbackStep(0, [])], 9)
        )
        self.assertEqual(advice.switching, types.Switching.NEVER)
        self.assertEqual(
            advice.edits, [types.Edit_SetField(("/a", '{"b": 1}')), types.Edit_SetHeader(("x", "y"))]
        )
        with self.assertRaisesRegex(TypeError, "`half`"):
            any_lane().note("half", 0.5)
        self.assertEqual(
            blend({"est-wait": 7}).lanes, types.LaneAdvice_Blend([types.MetricWeight(types.Metric.EST_WAIT, 7)])
        )
        self.assertEqual(scores([(1, 900)]).lanes, types.LaneAdvice_Scores([types.LaneScore(1, 900)]))
        self.assertEqual(reject(429, "slow", "later", 3).reject, types.Rejection(429, "slow", "later", 3))

    def test_mistakes_in_the_configuration_are_named(self):
        def read(text):
            config = Config.parse(text)
            config.text("name")
            config.integer("count", 1, least=1, most=9)
            config.flag("on")
            config.texts("list")
            config.text_map("map")
            inner = config.section("inner")
            inner.flag("deep")
            inner.end()
            config.end()

        for text, sentence in [
            ("{", "the configuration is no JSON"),
            ("[]", "the configuration must be an object"),
            ('{"other": 1}', "there is no key `other`"),
            ('{"name": 5}', "`name` must be a text"),
            ('{"name": null}', "`name` must be a text"),
            ('{"count": 10}', "`count` must be a whole number from 1 to 9"),
            ('{"count": 1.5}', "`count` must be a whole number from 1 to 9"),
            ('{"count": true}', "`count` must be a whole number from 1 to 9"),
            ('{"on": "yes"}', "`on` must be true or false"),
            ('{"list": ["a", 5]}', "`list` must be a list of texts"),
            ('{"map": {"a": 5}}', "`map.a` must be a text"),
            ('{"inner": {"shallow": true}}', "there is no key `inner.shallow`"),
            ('{"inner": []}', "`inner` must be an object"),
        ]:
            with self.subTest(text), self.assertRaises(PolicyError) as raised:
                read(text)
            self.assertEqual(raised.exception.value, types.PolicyError_InvalidConfig(sentence))
        read('{"name": "", "count": 9, "on": false, "list": [], "map": {}, "inner": {"deep": true}}')

    def test_lanes_are_asked_for_once_per_topology(self):
        asked = []

        class Fleet:
            def find(self, name):
                asked.append(name)
                return 0 if name == "a" else None

        lanes = Lanes()
        for topology in [1, 1, 2]:
            call = Tested(Policy("p", "1", lambda _: None)).call(FakeRequest("hi", context={"topology": topology}), FLEET)
            call.fleet = Fleet()
            self.assertEqual((lanes.find(call, "a"), lanes.find(call, "b")), (0, None))
        self.assertEqual(asked, ["a", "b", "a", "b"])

    def test_the_fakes_answer_as_the_contract_says(self):
        request = FakeRequest("héllo FN main", headers={"X-A": "1"}, tenant="t")
        call = Tested(Policy("p", "1", lambda _: None)).call(request, FLEET)
        self.assertEqual(call.context.prompt_tokens, 4)
        self.assertEqual(call.request.header("x-a"), "1")
        self.assertEqual(call.request.text(0, 2, 4), "llo")
        self.assertEqual(call.request.text(9, 0, 4), "")
        self.assertTrue(call.request.contains("fn main", True))
        self.assertFalse(call.request.contains("fn main", False))
        self.assertEqual(call.request.field("/messages/0/role", 10), types.FieldValue_Json('"user"'))
        self.assertIsInstance(call.request.field("/messages/0/content", 2), types.FieldValue_TooLarge)
        self.assertEqual(call.request.field("/nothing", 2), types.FieldValue_Absent())
        self.assertEqual(call.fleet.with_label("tier", "cheap"), [1])
        self.assertEqual(call.fleet.candidates(), [0, 1])
        self.assertIsNone(call.fleet.stat(7))


class Border(unittest.TestCase):
    """What the host sees of a policy."""

    def bind(self, advise):
        from pointsman import guest

        advisor = type("Advisor", (), {"advise": lambda _, call: advise(call)})()
        guest.bind(Policy("p", "1", lambda _: advisor, ["h"]))
        guest.Lifecycle().configure("{}")
        return guest

    def thrown(self, advise):
        call = Tested(Policy("p", "1", lambda _: None)).call(FakeRequest("hi"), FLEET)
        with self.assertRaises(PolicyError) as raised:
            self.bind(advise).OnRequest().advise(call.context)
        return raised.exception.value

    def test_what_is_raised_becomes_the_contract_s_error(self):
        def unknown(_):
            raise unsupported("no media")

        self.assertEqual(self.thrown(unknown), types.PolicyError_Unsupported("no media"))
        self.assertEqual(
            self.thrown(lambda _: {}["x"]), types.PolicyError_Other("KeyError: 'x'")
        )

    def test_it_describes_itself_and_hooks_that_it_does_not_have_do_nothing(self):
        guest = self.bind(lambda _: any_lane())
        described = guest.Lifecycle().describe()
        self.assertEqual((described.name, described.version, described.hints), ("p", "1", ["h"]))
        self.assertEqual(guest.OnTick().tick(0, 0), [])
        self.assertIsNone(guest.OnComplete().observe(0, []))


if __name__ == "__main__":
    unittest.main()
