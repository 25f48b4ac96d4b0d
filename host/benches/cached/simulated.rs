//! The conversations in virtual time.

use std::time::Duration;

use pointsman_domain::dispatch::{Backoff, LaneSetup, Residency, Rules};
use pointsman_domain::{Endpoint, EngineKind, LaneId, LaneInfo, PlanLimits};
use pointsman_simulate::{
    ClassId, DecodeRates, Distribution, EngineModel, FinishedRequest, Fleet, Lane, Observer,
    Random, RunConfig, ServiceModel, SimRequest, Traffic,
};

use super::{Blend, MODEL, Turn};

const CONVERSATIONS: u64 = 400;
const TURNS: u32 = 6;
/// Tokens of the first prompt, of a response, and of a further question.
const FIRST: u32 = 2000;
const OUTPUT: u32 = 150;
const QUESTION: u32 = 100;
/// Capacity of a lane's key-value cache: more than its eight requests need, and less than all
/// conversations that are open.
const KV_TOKENS: u64 = 60_000;

/// Clients that have one conversation after the other.
struct Conversations {
    clients: u64,
    random: Random,
    begun: u64,
}

impl Conversations {
    fn begin(&mut self, at: Duration) -> Option<SimRequest> {
        if self.begun == CONVERSATIONS {
            return None;
        }
        self.begun += 1;
        Some(SimRequest {
            at,
            class: ClassId(0),
            tenant: None,
            session: self.begun,
            turn: 0,
            endpoint: Endpoint::ChatCompletions,
            model: MODEL.into(),
            headers: [].into(),
            media: 0,
            text: "".into(),
            prompt_tokens: FIRST,
            shared_tokens: 0,
            output_tokens: OUTPUT,
            max_tokens: None,
            stream: true,
            client_timeout: None,
            body: None,
            id: None,
            recorded_times: None,
        })
    }

    /// Returns a pause of up to four seconds.
    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.next_u64() % 4000)
    }
}

impl Traffic for Conversations {
    fn classes(&self) -> &[String] {
        &[]
    }

    fn next(&mut self) -> Option<SimRequest> {
        if self.begun == self.clients {
            return None;
        }
        let at = Duration::from_millis(500 * self.begun);
        self.begin(at)
    }

    fn follow_up(&mut self, request: &SimRequest, ended_at: Duration) -> Option<SimRequest> {
        let at = ended_at + self.pause();
        if request.turn + 1 == TURNS {
            return self.begin(at);
        }
        Some(SimRequest {
            at,
            turn: request.turn + 1,
            shared_tokens: request.prompt_tokens,
            prompt_tokens: request.prompt_tokens + OUTPUT + QUESTION,
            ..request.clone()
        })
    }
}

#[derive(Default)]
struct Turns(Vec<Turn>);

impl Observer for Turns {
    fn ended(&mut self, ended: &FinishedRequest<'_>) {
        self.0.push(Turn {
            first: ended.request.turn == 0,
            prompt: ended.request.prompt_tokens,
            cached: ended.cached_tokens,
            first_token: ended.first_byte.unwrap_or_default(),
        });
    }
}

fn lane(name: &str) -> Lane {
    let second = Duration::from_secs(1);
    Lane {
        info: LaneInfo {
            id: LaneId(0),
            name: name.to_owned(),
            engine: EngineKind::External,
            models: vec![MODEL.to_owned()],
            names: Default::default(),
            labels: Vec::new(),
            max_context: 0,
            endpoints: pointsman_domain::EndpointSet::all(),
            slots: 8,
            group: 0,
            cost_milli: 0,
            is_peer: false,
        },
        setup: LaneSetup {
            slots: 8,
            group: usize::MAX,
            need: 0,
            asleep: 0,
            residency: Residency::External,
            expected_load: second,
            backoff: Backoff {
                first: second,
                most: second,
                reset_after: second,
                max_failures: 1,
                retry_failed_after: second,
            },
        },
        first_byte_timeout: 600 * second,
        engine: EngineModel {
            load_time: Distribution::Fixed(0.0),
            stop_time: Distribution::Fixed(0.0),
            service: ServiceModel::Rates {
                overhead: Distribution::Fixed(0.02),
                prefill: 4000.0,
                decode: DecodeRates(vec![(1, 40.0), (8, 240.0)]),
            },
            kv_tokens: Some(KV_TOKENS),
            prefix_cache: true,
            hang_detection_time: second,
        },
    }
}

/// Runs all conversations of this number of clients with this advice.
pub(super) fn run(mut blend: Blend, clients: u64) -> Vec<Turn> {
    let hour = Duration::from_secs(3600);
    let fleet = Fleet {
        lanes: ["a", "b"].map(lane).into(),
        groups: Vec::new(),
        rules: Rules::default(),
        limits: PlanLimits { max_wait: hour, max_steps: 2 },
        guards: Default::default(),
        deadline: hour,
        weights: Default::default(),
    };
    let config = RunConfig { fleet: &fleet, faults: &[], start_ms: 1_767_571_200_000, seed: 1 };
    let mut traffic = Conversations { clients, random: Random::new(1, "pauses"), begun: 0 };
    let mut turns = Turns::default();
    pointsman_simulate::run(&config, &mut blend, &mut traffic, &mut turns);
    turns.0
}
