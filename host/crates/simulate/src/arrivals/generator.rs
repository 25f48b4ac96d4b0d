//! The generator of requests. A request's content does not depend on when it arrives, and the
//! content of a session's turn does not depend on when earlier turns were answered, so that
//! variants of a scenario see the same requests.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::Endpoint;

use super::conversations::Turn;
use super::rows::TraceRow;
use super::spec::{HeaderValue, Headers, Media, Models, Sessions, TrafficSource, TrafficStream};
use crate::random::{Distribution, Random};
use crate::traffic::{ClassId, SimRequest};

/// Generates the requests of one stream.
pub(super) struct RequestGenerator {
    stream: Arc<TrafficStream>,
    /// The number before the stream's first session.
    first_session: u64,
    class: ClassId,
    seed: u64,
    /// The prefix of the names of the stream's random numbers.
    name: String,
    // Each property of single requests has its own random numbers, so that a change of one leaves
    // the others as they are.
    tenants: Random,
    models: Random,
    prompts: Random,
    outputs: Random,
    headers: Random,
    media: Random,
    gaps: Gaps,
}

/// What a trace file does not say of its requests, with the number of such requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gaps {
    pub(super) requests: u64,
    pub(super) texts: u64,
    pub(super) prompts: u64,
    pub(super) outputs: u64,
}

impl RequestGenerator {
    pub(super) fn new(
        stream: Arc<TrafficStream>,
        first_session: u64,
        class: ClassId,
        seed: u64,
        name: String,
    ) -> Self {
        let random = |what| Random::new(seed, &format!("{name} {what}"));
        let (tenants, models) = (random("tenants"), random("models"));
        let (prompts, outputs) = (random("prompts"), random("outputs"));
        let (headers, media) = (random("headers"), random("media"));
        Self {
            stream,
            first_session,
            class,
            seed,
            name,
            tenants,
            models,
            prompts,
            outputs,
            headers,
            media,
            gaps: Gaps::default(),
        }
    }

    /// Returns what the trace file did not say of the requests so far.
    pub(super) fn gaps(&self) -> Gaps {
        self.gaps
    }

    /// Returns the maximum number of rows to read from the stream's trace file.
    pub(super) fn limit(&self) -> Option<u64> {
        match &self.stream.source {
            TrafficSource::Trace(trace) => trace.limit,
            TrafficSource::Open(_) | TrafficSource::Sessions(_) => None,
        }
    }

    /// Returns the single request with this number.
    pub(super) fn single(&mut self, at: Duration, number: u64) -> SimRequest {
        let (prompt, output) = (tokens(&self.stream.prompt, &mut self.prompts), self.output());
        let model = pick_model(&self.stream.models, &mut self.models);
        let shared = self.stream.shared_prefix.min(prompt);
        SimRequest {
            prompt_tokens: prompt,
            shared_tokens: shared,
            output_tokens: output,
            ..self.template(at, number, model)
        }
    }

    /// Returns the first turn of the session with this number.
    pub(super) fn first_turn(&mut self, at: Duration, number: u64) -> SimRequest {
        let model = pick_model(&self.stream.models, &mut self.models);
        let request = self.template(at, number, model);
        let mut random = self.turn_random(request.session, 0);
        let prompt = tokens(&self.stream.prompt, &mut random).max(self.stream.shared_prefix);
        let output = self.cap_output(tokens(&self.stream.output, &mut random));
        let prompt = self.sessions().map_or(prompt, |sessions| cap_prompt(prompt, sessions));
        let shared = self.stream.shared_prefix.min(prompt);
        SimRequest {
            prompt_tokens: prompt,
            shared_tokens: shared,
            output_tokens: output,
            ..request
        }
    }

    /// Returns the next turn of a session, or `None` if the session is over.
    pub(super) fn next_turn(&self, request: &SimRequest, ended_at: Duration) -> Option<SimRequest> {
        let sessions = self.sessions()?;
        let mut random = self.random(&format!("turns {}", request.session));
        let turns = tokens(&sessions.turns, &mut random);
        let turn = request.turn.checked_add(1).filter(|turn| *turn < turns)?;
        let mut random = self.turn_random(request.session, turn);
        let shared_prefix = self.stream.shared_prefix;
        let alone = tokens(&self.stream.prompt, &mut random).max(shared_prefix);
        let output = self.cap_output(tokens(&self.stream.output, &mut random));
        let at = ended_at + sessions.think_time.sample_time(&mut random);
        let history = request.prompt_tokens.saturating_add(request.output_tokens);
        let prompt = history.saturating_add((alone - shared_prefix).max(1));
        let fits = sessions.max_prompt.is_none_or(|max| prompt <= max);
        let (prompt, shared) =
            if fits { (prompt, history) } else { (cap_prompt(alone, sessions), shared_prefix) };
        Some(self.follow_up(request, at, (prompt, shared.min(prompt), output)))
    }

    /// Returns the first turn of a recorded conversation.
    pub(super) fn conversation_start(
        &mut self,
        at: Duration,
        number: u64,
        turn: Turn,
    ) -> SimRequest {
        let model = pick_model(&self.stream.models, &mut self.models);
        let output = self.cap_output(turn.response);
        let (prompt, shared) = (turn.prompt, self.stream.shared_prefix.min(turn.prompt));
        SimRequest {
            prompt_tokens: prompt,
            shared_tokens: shared,
            output_tokens: output,
            ..self.template(at, number, model)
        }
    }

    /// Returns a later turn of a recorded conversation.
    pub(super) fn next_conversation_turn(
        &self,
        request: &SimRequest,
        ended_at: Duration,
        turn: Turn,
    ) -> SimRequest {
        let mut random = self.turn_random(request.session, request.turn.saturating_add(1));
        let think_time = match &self.stream.source {
            TrafficSource::Trace(trace) => trace.think_time.sample_time(&mut random),
            TrafficSource::Open(_) | TrafficSource::Sessions(_) => Duration::ZERO,
        };
        let history = request.prompt_tokens.saturating_add(request.output_tokens);
        let prompt = history.saturating_add(turn.prompt);
        let lengths = (prompt, history, self.cap_output(turn.response));
        self.follow_up(request, ended_at + think_time, lengths)
    }

    /// Returns the request of a trace row. Missing values come from the stream.
    pub(super) fn recorded_request(
        &mut self,
        at: Duration,
        number: u64,
        row: TraceRow,
    ) -> SimRequest {
        self.gaps.requests += 1;
        self.gaps.texts += u64::from(row.body.is_none());
        self.gaps.prompts += u64::from(row.prompt.is_none());
        self.gaps.outputs += u64::from(row.output.is_none());
        // Always drawn, so that the random numbers of a row do not depend on earlier rows' values.
        let output = self.output();
        let prompt = tokens(&self.stream.prompt, &mut self.prompts);
        let model = pick_model(&self.stream.models, &mut self.models).or(row.model);
        let request = self.template(at, number, model);
        let max_tokens = row.max_tokens.or(request.max_tokens);
        let prompt = row.prompt.unwrap_or(prompt).max(1);
        SimRequest {
            tenant: request.tenant.or(row.tenant),
            endpoint: row.endpoint.unwrap_or(request.endpoint),
            headers: row.headers.unwrap_or(request.headers),
            prompt_tokens: prompt,
            shared_tokens: self.stream.shared_prefix.min(prompt),
            output_tokens: row.output.unwrap_or(output).max(1),
            max_tokens,
            stream: row.stream.unwrap_or(request.stream),
            body: row.body,
            id: row.id,
            recorded_times: row.recorded_times,
            ..request
        }
    }

    /// Returns a request in a new session, without lengths.
    fn template(&mut self, at: Duration, number: u64, model: Option<Arc<str>>) -> SimRequest {
        let stream = &self.stream;
        let tenants = stream.tenants.as_ref().map(|tenants| &tenants.0);
        let session = self.first_session + number + 1;
        SimRequest {
            at,
            class: self.class,
            tenant: tenants.and_then(|tenants| pick_weighted(tenants, &mut self.tenants)),
            session,
            turn: 0,
            endpoint: Endpoint::ChatCompletions,
            model: model.unwrap_or_else(|| "auto".into()),
            headers: headers_of(&stream.headers, session, &mut self.headers),
            media: stream.media.as_ref().map_or(0, |media| images(media, &mut self.media)),
            text: Arc::clone(&stream.text),
            prompt_tokens: 1,
            shared_tokens: 0,
            output_tokens: 1,
            max_tokens: stream.max_tokens,
            stream: stream.stream,
            client_timeout: stream.client_timeout,
            body: None,
            id: None,
            recorded_times: None,
        }
    }

    fn follow_up(
        &self,
        request: &SimRequest,
        at: Duration,
        (prompt, shared, output): (u32, u32, u32),
    ) -> SimRequest {
        let turn = request.turn.saturating_add(1);
        let model = match &self.stream.models {
            Some(Models::PerTurn(models)) => models.get(turn as usize % models.len().max(1)),
            Some(Models::Weighted(_)) | None => None,
        };
        SimRequest {
            at,
            turn,
            model: model.unwrap_or(&request.model).clone(),
            prompt_tokens: prompt,
            shared_tokens: shared,
            output_tokens: output,
            id: None,
            ..request.clone()
        }
    }

    fn sessions(&self) -> Option<&Sessions> {
        match &self.stream.source {
            TrafficSource::Sessions(sessions) => Some(sessions),
            TrafficSource::Open(_) | TrafficSource::Trace(_) => None,
        }
    }

    fn output(&mut self) -> u32 {
        let output = tokens(&self.stream.output, &mut self.outputs);
        self.cap_output(output)
    }

    fn cap_output(&self, output: u32) -> u32 {
        self.stream.max_tokens.map_or(output, |max| output.min(max))
    }

    fn turn_random(&self, session: u64, turn: u32) -> Random {
        self.random(&format!("session {session} {turn}"))
    }

    fn random(&self, what: &str) -> Random {
        Random::new(self.seed, &format!("{} {what}", self.name))
    }
}

fn cap_prompt(prompt: u32, sessions: &Sessions) -> u32 {
    sessions.max_prompt.map_or(prompt, |max| prompt.min(max))
}

/// Draws a length of at least one token.
fn tokens(distribution: &Distribution, random: &mut Random) -> u32 {
    distribution.sample(random).round().clamp(1.0, f64::from(u32::MAX)) as u32
}

/// Returns the headers of a session.
fn headers_of(headers: &Headers, session: u64, random: &mut Random) -> Arc<[(String, String)]> {
    let headers = match headers {
        Headers::Same(headers) => return Arc::clone(headers),
        Headers::PerSession(headers) => headers,
    };
    let value = |value: &HeaderValue, random: &mut Random| match value {
        HeaderValue::Text(text) => text.replace(HeaderValue::SESSION, &session.to_string()),
        HeaderValue::Weighted(values) => {
            pick_weighted(values, random).map_or_else(String::new, |value| value.to_string())
        }
    };
    headers.iter().map(|(name, choice)| (name.clone(), value(choice, random))).collect()
}

/// Draws the number of images of a session.
fn images(media: &Media, random: &mut Random) -> u32 {
    // Both are always drawn, so that a change of the share leaves the other sessions as they are.
    let (position, count) = (random.fraction(), media.count.sample(random));
    if position < media.share { count.round().min(f64::from(Media::MAX)) as u32 } else { 0 }
}

/// Draws the model of a request, or of the first turn of a session.
fn pick_model(models: &Option<Models>, random: &mut Random) -> Option<Arc<str>> {
    match models.as_ref()? {
        Models::Weighted(models) => pick_weighted(models, random),
        Models::PerTurn(models) => models.first().cloned(),
    }
}

/// Draws one of these names by their cumulative weights.
fn pick_weighted(names: &[(Arc<str>, f64)], random: &mut Random) -> Option<Arc<str>> {
    let (last, sum) = names.last()?;
    let position = random.fraction() * sum;
    let index = names.partition_point(|(_, sum)| *sum <= position);
    // Rounding can yield the sum itself, which belongs to the last name.
    Some(names.get(index).map_or(last, |(name, _)| name).clone())
}
