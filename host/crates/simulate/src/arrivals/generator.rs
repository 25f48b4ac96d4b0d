//! What is asked for. What a request is does not depend on when it comes, and what a turn of a session is not on when the
//! turns before it were answered.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::Endpoint;

use super::conversations::Turn;
use super::rows::Row;
use crate::random::{Random, Spread};
use crate::scenario::{Models, Sessions, Source, Stream};
use crate::traffic::{Ask, ClassId};

/// Makes the requests of one stream.
pub(super) struct Content {
    stream: Arc<Stream>,
    /// Number of its first session.
    sessions: u64,
    class: ClassId,
    seed: u64,
    name: String,
    /// For single requests, each with random numbers of its own, so that a change of one leaves the others as they are.
    tenants: Random,
    models: Random,
    prompts: Random,
    outputs: Random,
}

impl Content {
    pub(super) fn new(
        stream: Arc<Stream>,
        sessions: u64,
        class: ClassId,
        seed: u64,
        name: String,
    ) -> Self {
        let random = |what| Random::new(seed, &format!("{name} {what}"));
        let (tenants, models) = (random("tenants"), random("models"));
        let (prompts, outputs) = (random("prompts"), random("outputs"));
        Self { stream, sessions, class, seed, name, tenants, models, prompts, outputs }
    }

    /// Most rows of the stream's file.
    pub(super) fn limit(&self) -> Option<u64> {
        match &self.stream.source {
            Source::Trace(trace) => trace.limit,
            Source::Open(_) | Source::Sessions(_) => None,
        }
    }

    /// The request with this number.
    pub(super) fn single(&mut self, at: Duration, number: u64) -> Ask {
        let (prompt, output) = (tokens(&self.stream.prompt, &mut self.prompts), self.output());
        let model = pick(&self.stream.models, &mut self.models);
        let shared = self.stream.shared.min(prompt);
        Ask {
            prompt_tokens: prompt,
            shared_tokens: shared,
            output_tokens: output,
            ..self.blank(at, number, model)
        }
    }

    /// The first turn of the session with this number.
    pub(super) fn first_turn(&mut self, at: Duration, number: u64) -> Ask {
        let model = pick(&self.stream.models, &mut self.models);
        let ask = self.blank(at, number, model);
        let mut random = self.of_turn(ask.session, 0);
        let prompt = tokens(&self.stream.prompt, &mut random).max(self.stream.shared);
        let output = self.capped(tokens(&self.stream.output, &mut random));
        let prompt = self.sessions().map_or(prompt, |sessions| cut(prompt, sessions));
        let shared = self.stream.shared.min(prompt);
        Ask { prompt_tokens: prompt, shared_tokens: shared, output_tokens: output, ..ask }
    }

    /// What a client asks after it was answered; `None` when it has asked as often as it wanted to.
    pub(super) fn next_turn(&self, ask: &Ask, ended: Duration) -> Option<Ask> {
        let sessions = self.sessions()?;
        let turns = tokens(&sessions.turns, &mut self.random(&format!("turns {}", ask.session)));
        let turn = ask.turn.checked_add(1).filter(|turn| *turn < turns)?;
        let mut random = self.of_turn(ask.session, turn);
        let whole = tokens(&self.stream.prompt, &mut random).max(self.stream.shared);
        let output = self.capped(tokens(&self.stream.output, &mut random));
        let at = ended + sessions.think.time(&mut random);
        let history = ask.prompt_tokens.saturating_add(ask.output_tokens);
        let prompt = history.saturating_add((whole - self.stream.shared).max(1));
        let fits = sessions.longest.is_none_or(|longest| prompt <= longest);
        let (prompt, shared) =
            if fits { (prompt, history) } else { (cut(whole, sessions), self.stream.shared) };
        Some(self.following(ask, at, (prompt, shared.min(prompt), output)))
    }

    /// The first turn of a conversation.
    pub(super) fn turn_of(&mut self, at: Duration, number: u64, turn: Turn) -> Ask {
        let model = pick(&self.stream.models, &mut self.models);
        let output = self.capped(turn.answer);
        let (prompt, shared) = (turn.question, self.stream.shared.min(turn.question));
        Ask {
            prompt_tokens: prompt,
            shared_tokens: shared,
            output_tokens: output,
            ..self.blank(at, number, model)
        }
    }

    /// A later one.
    pub(super) fn next_turn_of(&self, ask: &Ask, ended: Duration, turn: Turn) -> Ask {
        let mut random = self.of_turn(ask.session, ask.turn.saturating_add(1));
        let think = match &self.stream.source {
            Source::Trace(trace) => trace.think.time(&mut random),
            Source::Open(_) | Source::Sessions(_) => Duration::ZERO,
        };
        let history = ask.prompt_tokens.saturating_add(ask.output_tokens);
        let lengths = (history.saturating_add(turn.question), history, self.capped(turn.answer));
        self.following(ask, ended + think, lengths)
    }

    /// A request of a file; what it does not say comes from the stream.
    pub(super) fn of_row(&mut self, at: Duration, number: u64, row: Row) -> Ask {
        let output = self.output();
        let prompt = tokens(&self.stream.prompt, &mut self.prompts);
        let model = pick(&self.stream.models, &mut self.models).or(row.model);
        let ask = self.blank(at, number, model);
        let max_tokens = row.max_tokens.or(ask.max_tokens);
        let prompt = row.prompt.unwrap_or(prompt).max(1);
        Ask {
            tenant: ask.tenant.or(row.tenant),
            endpoint: row.endpoint.unwrap_or(ask.endpoint),
            headers: row.headers.unwrap_or(ask.headers),
            prompt_tokens: prompt,
            shared_tokens: self.stream.shared.min(prompt),
            output_tokens: row.output.unwrap_or(output).max(1),
            max_tokens,
            stream: row.stream.unwrap_or(ask.stream),
            body: row.body,
            id: row.id,
            took: row.took,
            ..ask
        }
    }

    /// A request of a session of its own, without lengths.
    fn blank(&mut self, at: Duration, number: u64, model: Option<Arc<str>>) -> Ask {
        let stream = &self.stream;
        let tenants = stream.tenants.as_ref().map(|tenants| &tenants.0);
        Ask {
            at,
            class: self.class,
            tenant: tenants.and_then(|tenants| weighted(tenants, &mut self.tenants)),
            session: self.sessions + number + 1,
            turn: 0,
            endpoint: Endpoint::ChatCompletions,
            model: model.unwrap_or_else(|| "auto".into()),
            headers: Arc::clone(&stream.headers),
            text: Arc::clone(&stream.text),
            prompt_tokens: 1,
            shared_tokens: 0,
            output_tokens: 1,
            max_tokens: stream.max_tokens,
            stream: stream.stream,
            patience: stream.patience,
            body: None,
            id: None,
            took: None,
        }
    }

    fn following(&self, ask: &Ask, at: Duration, (prompt, shared, output): (u32, u32, u32)) -> Ask {
        let turn = ask.turn.saturating_add(1);
        let model = match &self.stream.models {
            Some(Models::InTurn(models)) => models.get(turn as usize % models.len().max(1)),
            Some(Models::Weighted(_)) | None => None,
        };
        Ask {
            at,
            turn,
            model: model.unwrap_or(&ask.model).clone(),
            prompt_tokens: prompt,
            shared_tokens: shared,
            output_tokens: output,
            id: None,
            ..ask.clone()
        }
    }

    fn sessions(&self) -> Option<&Sessions> {
        match &self.stream.source {
            Source::Sessions(sessions) => Some(sessions),
            Source::Open(_) | Source::Trace(_) => None,
        }
    }

    fn output(&mut self) -> u32 {
        let output = tokens(&self.stream.output, &mut self.outputs);
        self.capped(output)
    }

    fn capped(&self, output: u32) -> u32 {
        self.stream.max_tokens.map_or(output, |most| output.min(most))
    }

    fn of_turn(&self, session: u64, turn: u32) -> Random {
        self.random(&format!("session {session} {turn}"))
    }

    fn random(&self, what: &str) -> Random {
        Random::new(self.seed, &format!("{} {what}", self.name))
    }
}

fn cut(prompt: u32, sessions: &Sessions) -> u32 {
    sessions.longest.map_or(prompt, |longest| prompt.min(longest))
}

/// A length, of at least one token.
fn tokens(spread: &Spread, random: &mut Random) -> u32 {
    spread.sample(random).round().clamp(1.0, f64::from(u32::MAX)) as u32
}

/// The model of a request, or of the first turn of a session.
fn pick(models: &Option<Models>, random: &mut Random) -> Option<Arc<str>> {
    match models.as_ref()? {
        Models::Weighted(models) => weighted(models, random),
        Models::InTurn(models) => models.first().cloned(),
    }
}

/// One of these names; weights are summed up.
fn weighted(names: &[(Arc<str>, f64)], random: &mut Random) -> Option<Arc<str>> {
    let (last, sum) = names.last()?;
    let place = random.part() * sum;
    let index = names.partition_point(|(_, sum)| *sum <= place);
    Some(names.get(index).map_or(last, |(name, _)| name).clone())
}
