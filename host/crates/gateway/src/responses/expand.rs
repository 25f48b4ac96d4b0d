//! From the body of a request for a response to the one that policies and engines see: with the
//! items of earlier turns.

use std::collections::HashSet;

use bytes::Bytes;
use memchr::memmem;
use pointsman_openai::{BadRequest, Item, TurnRequest, referenced};
use serde_json::Value;
use serde_json::value::to_raw_value;
use tokio_util::sync::CancellationToken;

use super::remote_turn::RemoteTurn;
use super::stored::{Responses, Stored, initial, new_id, response_of};
use super::turn::{Owner, Turn, TurnSlot};
use crate::error::RouteError;
use crate::forwarded::{Client, Forwarded};
use crate::large_thread;
use crate::pipeline::Pipeline;
use crate::policy_threads::LARGE_BODY;
use crate::settings::ResponseModel;
use crate::upload::Reservation;
use pointsman_access::Identity;
use pointsman_fleet::Fleet;

/// The field that names the response that a turn follows.
const PREVIOUS: &str = "previous_response_id";

/// Maximum number of turns of a conversation.
const MAX_TURNS: usize = 10_000;

/// Maximum number of references to items in an input: each of them is searched for.
const MAX_REFERENCES: usize = 256;

/// The fields of a response that are the host's: engines see other values of them.
const OWN_FIELDS: [&str; 3] = ["metadata", "instructions", "user"];

/// The items of earlier turns, oldest first.
#[derive(Default)]
struct Earlier {
    items: Vec<Item>,
    /// The lane of the last turn.
    lane: Option<String>,
}

impl TurnSlot {
    /// Begins the turn of a request: returns the body with the items of earlier turns and without
    /// what is the host's. A body that is not a request is returned as it is; parsing it says why.
    /// So is one whose earlier turns another host keeps.
    pub(crate) async fn begin(
        &self,
        pipeline: &Pipeline,
        body: Bytes,
        (identity, forwarded): (&Identity, &Forwarded),
        memory: &mut Reservation,
    ) -> Result<Bytes, RouteError> {
        if self.is_proxied() {
            self.find_remote(pipeline, &body, (identity, forwarded)).await;
            return Ok(body);
        }
        let is_large = body.len() > LARGE_BODY;
        let read = {
            let body = body.clone();
            move || read(&body)
        };
        let permit = match is_large {
            true => Some(pipeline.parsers.acquire(identity.tenant.as_deref()).await),
            false => None,
        };
        let parts = if is_large { large_thread::run(read).await? } else { read()? };
        let Some((mut request, items)) = parts else { return Ok(body) };
        let responses = &pipeline.responses;
        let owner = Owner::from(forwarded.client(Client::from(identity)));
        let previous = previous_id(&request)?;
        let mut earlier = Earlier::default();
        if let Some(previous) = &previous {
            let max = pipeline.settings.max_body;
            let found = responses.earlier(previous, &owner, max, memory).await;
            earlier = match self.or_remote(&pipeline.fleet, forwarded, previous, found)? {
                Some(earlier) => earlier,
                None => return Ok(body),
            };
        }
        let mut turn = new_turn(&request, owner, (previous, earlier.lane.take()))?;
        if pipeline.settings.response_model == ResponseModel::Asked {
            let asked = forwarded.model.as_deref().map(Value::from);
            let asked = asked.or_else(|| request.get("model"));
            turn.own_fields.extend(asked.map(|model| ("model", model)));
        }
        let (items, has_references) = responses.resolve(items, &earlier, &turn.owner).await?;
        let turn = Turn { input: items, ..turn };
        request.remove(PREVIOUS);
        request.remove("background");
        request.remove("conversation");
        request.set("store", &false);
        if turn.previous.is_some() || has_references {
            let whole: Vec<&Item> = earlier.items.iter().chain(&turn.input).collect();
            request.set("input", &whole);
        }
        self.set(turn);
        let max = pipeline.settings.max_body;
        let is_large = is_large || memory.bytes() > LARGE_BODY;
        let written = if is_large {
            large_thread::run(move || request.write()).await
        } else {
            request.write()
        };
        drop(permit);
        if written.len() > max {
            return Err(RouteError::BodyTooLarge { max });
        }
        Ok(written.into())
    }

    /// Finds the host that executes a turn which a proxy sends. What is not valid or not known is
    /// left to the engine, which gets the request as it is.
    async fn find_remote(
        &self,
        pipeline: &Pipeline,
        body: &Bytes,
        (identity, forwarded): (&Identity, &Forwarded),
    ) {
        // Most requests are the first of a conversation, and need not be read twice.
        if memmem::find(body, PREVIOUS.as_bytes()).is_none() {
            return;
        }
        let request = if body.len() > LARGE_BODY {
            let _permit = pipeline.parsers.acquire(identity.tenant.as_deref()).await;
            let body = body.clone();
            large_thread::run(move || TurnRequest::read(&body)).await
        } else {
            TurnRequest::read(body)
        };
        let previous = request.and_then(|request| request.get(PREVIOUS));
        let Some(Value::String(previous)) = previous else { return };
        let owner = Owner::from(forwarded.client(Client::from(identity)));
        let Some(host) = pipeline.responses.host_of(&previous, &owner).await else { return };
        let turn = RemoteTurn::find(&pipeline.fleet, forwarded, &previous, &host);
        turn.into_iter().for_each(|turn| self.set_remote(turn));
    }

    /// Returns the earlier turns; `None` if another host keeps the response `previous` and is to
    /// execute the turn.
    fn or_remote(
        &self,
        fleet: &Fleet,
        forwarded: &Forwarded,
        previous: &str,
        found: Result<Earlier, RouteError>,
    ) -> Result<Option<Earlier>, RouteError> {
        match found {
            Err(RouteError::ResponseElsewhere { id, host }) if id == previous => {
                let Some(turn) = RemoteTurn::find(fleet, forwarded, previous, &host) else {
                    return Err(RouteError::ResponseElsewhere { id, host });
                };
                self.set_remote(turn);
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// Notes that the request is valid. A background response is registered.
    pub(crate) fn accepted(&self, responses: &Responses) -> Result<(), RouteError> {
        if let Some(turn) = self.turn().filter(|turn| turn.is_background) {
            responses.begin(turn)?;
        }
        self.accept();
        Ok(())
    }
}

type Parts = Option<(TurnRequest, Vec<Item>)>;

fn read(body: &[u8]) -> Result<Parts, RouteError> {
    let Some(request) = TurnRequest::read(body) else { return Ok(None) };
    let items = request.items()?;
    Ok(Some((request, items)))
}

fn previous_id(request: &TurnRequest) -> Result<Option<String>, RouteError> {
    if request.get("conversation").is_some() {
        let what = "conversation objects (use `previous_response_id`)";
        return Err(BadRequest::unsupported("conversation", what).into());
    }
    match request.get(PREVIOUS) {
        None => Ok(None),
        Some(Value::String(id)) => Ok(Some(id)),
        Some(_) => Err(BadRequest::invalid(PREVIOUS, "a string").into()),
    }
}

/// Returns a turn without its input.
fn new_turn(
    request: &TurnRequest,
    owner: Owner,
    (previous, lane): (Option<String>, Option<String>),
) -> Result<Turn, RouteError> {
    let id = new_id();
    let is_stored = request.flag("store")?.unwrap_or(true);
    let is_background = request.flag("background")?.unwrap_or(false);
    if is_background && !is_stored {
        return Err(BadRequest::invalid("background", "`store` not to be false").into());
    }
    if is_background && request.flag("stream")? == Some(true) {
        return Err(BadRequest::unsupported("stream", "streams of background responses").into());
    }
    let mut own_fields = vec![
        ("id", id.as_str().into()),
        ("store", is_stored.into()),
        ("background", is_background.into()),
        (PREVIOUS, previous.clone().into()),
    ];
    let given = OWN_FIELDS.iter().filter_map(|name| Some((*name, request.get(name)?)));
    own_fields.extend(given);
    let initial = initial(request, &id);
    let (input, cancelled) = (Vec::new(), CancellationToken::new());
    Ok(Turn {
        id,
        owner,
        is_stored,
        is_background,
        previous,
        lane,
        input,
        own_fields,
        initial,
        cancelled,
    })
}

impl Responses {
    /// Returns the items of a response and of those before it.
    /// Their memory is reserved.
    async fn earlier(
        &self,
        id: &str,
        owner: &Owner,
        max: usize,
        memory: &mut Reservation,
    ) -> Result<Earlier, RouteError> {
        let mut turns: Vec<Vec<Item>> = Vec::new();
        let (mut next, mut lane) = (Some(id.to_owned()), None);
        let mut bytes = 0;
        while let Some(id) = next.take() {
            let Some(stored) = self.get(&id, owner).await? else {
                return Err(match self.host_of(&id, owner).await {
                    Some(host) => RouteError::ResponseElsewhere { id, host },
                    None => RouteError::UnknownPreviousResponse { id },
                });
            };
            if stored.is_pending() {
                let expected = "a response that is complete";
                return Err(BadRequest::invalid(PREVIOUS, expected).into());
            }
            let Stored { previous, lane: lane_of_turn, input: mut items, response, .. } = stored;
            let output = response.get("output").and_then(Value::as_array).into_iter().flatten();
            items.extend(output.filter_map(|item| to_raw_value(item).ok()));
            let of_turn = items.iter().map(|item| item.get().len()).sum::<usize>();
            bytes += of_turn;
            memory.grow(of_turn)?;
            if bytes > max || turns.len() >= MAX_TURNS {
                return Err(RouteError::BodyTooLarge { max });
            }
            if turns.is_empty() {
                lane = lane_of_turn;
            }
            next = previous;
            turns.push(items);
        }
        Ok(Earlier { items: turns.into_iter().rev().flatten().collect(), lane })
    }

    /// Returns the items with those that they refer to in place of the references, and true if
    /// there are any.
    async fn resolve(
        &self,
        items: Vec<Item>,
        earlier: &Earlier,
        owner: &Owner,
    ) -> Result<(Vec<Item>, bool), RouteError> {
        let mut resolved = Vec::with_capacity(items.len());
        let mut references = 0;
        let known = known_ids(&items, earlier).await;
        for item in items {
            let Some(id) = referenced(&item) else {
                resolved.push(item);
                continue;
            };
            references += 1;
            if references > MAX_REFERENCES {
                let (what, max) = ("references to items", MAX_REFERENCES);
                return Err(BadRequest::TooMany { what, max }.into());
            }
            // An item of this conversation is in the input already.
            if known.contains(&id) {
                continue;
            }
            let response = response_of(&id);
            let stored = match &response {
                Some(response) => self.get(response, owner).await?,
                None => None,
            };
            let output = stored.as_ref().and_then(|stored| stored.response.get("output"));
            let mut output = output.and_then(Value::as_array).into_iter().flatten();
            let found = output.find(|item| item.get("id").is_some_and(|found| *found == *id));
            let found = found.and_then(|item| to_raw_value(item).ok());
            resolved.push(found.ok_or(RouteError::UnknownItem { id })?);
        }
        Ok((resolved, references > 0))
    }
}

/// Returns the ids of earlier items if an item refers to any: each item is read once, on a thread
/// of its own if there are many.
async fn known_ids(items: &[Item], earlier: &Earlier) -> HashSet<String> {
    #[derive(serde::Deserialize)]
    struct Shape {
        id: Option<String>,
    }
    let read = |item: &Item| serde_json::from_str::<Shape>(item.get()).ok()?.id;
    if earlier.items.is_empty() || !items.iter().any(|item| referenced(item).is_some()) {
        return HashSet::new();
    }
    let bytes: usize = earlier.items.iter().map(|item| item.get().len()).sum();
    if bytes <= LARGE_BODY {
        return earlier.items.iter().filter_map(read).collect();
    }
    let items = earlier.items.clone();
    large_thread::run(move || items.iter().filter_map(read).collect()).await
}
