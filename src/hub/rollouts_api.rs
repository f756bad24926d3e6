//! Answers requests about orders and rollouts.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Response,
    header::{ETAG, HeaderMap, HeaderValue, IF_MATCH, IF_NONE_MATCH},
};

use super::{
    caller::Person,
    requests::MAX_ORDER,
    rollouts::{Expected, MAX_JOURNAL, MAX_WAIT, tag_of},
    routes::Route,
    server::{Asked, REQUEST_COST, Server, json, parse, respond_with, response},
};
use crate::{
    crypto::RolloutId,
    http::{
        account::Account, body::BodySize, payload::Payload, problem::Problem,
        response::ResponseBody,
    },
    model::KeyringName,
    rollout::SignedStart,
    wire::{
        Code, JSON,
        orders::{OrderOutcome, WaitingOrders},
    },
};

impl Server {
    pub(super) async fn serve_rollouts(
        &self,
        route: Route,
        person: &Person,
        asked: Asked<'_>,
    ) -> Result<Response<ResponseBody>, Problem> {
        let account = self.accounts.of_operators();
        let size = |max_len| BodySize {
            max_len,
            memory_factor: REQUEST_COST,
        };
        let path = asked.head.uri.path().to_owned();
        match route {
            Route::SubmitOrder => {
                let body = self.read(account, asked.body, size(MAX_ORDER)).await?;
                let start: SignedStart = parse(&body, "a start order")?;
                let taken = self
                    .rollouts
                    .submit(start, &person.name, self.clock.now())?;
                json(&taken, account)
            }
            Route::WaitingOrders => {
                let query = asked.head.uri.query().unwrap_or_default();
                let (keyrings, wait) = waiting(query)?;
                let draining = asked.connection.draining.clone();
                let waiting = self.rollouts.waiting(&keyrings, wait);
                let orders = draining.run_until_cancelled(waiting).await;
                let none = || WaitingOrders { orders: Vec::new() };
                json(&orders.unwrap_or_else(none), account)
            }
            Route::OrderStatus => json(&self.rollouts.outcome(id_in(&path)?)?, account),
            Route::DecideOrder => {
                let body = self.read(account, asked.body, size(MAX_ORDER)).await?;
                let outcome: OrderOutcome = parse(&body, "what became of an order")?;
                json(&self.rollouts.decide(id_in(&path)?, outcome)?, account)
            }
            Route::Journal => journal(self.rollouts.journal(&keyring_in(&path)?)?, account),
            _ => {
                let expected = expected(&asked.head.headers)?;
                let keyring = keyring_in(&path)?;
                let body = self.read(account, asked.body, size(MAX_JOURNAL)).await?;
                let new = Bytes::from(body.bytes);
                let by = (!person.is_signer()).then_some(person.name.as_str());
                self.rollouts.replace(keyring, &expected, new, by)?;
                Ok(response(JSON, "{}"))
            }
        }
    }
}

fn journal(bytes: Bytes, account: &Arc<Account>) -> Result<Response<ResponseBody>, Problem> {
    let tag = HeaderValue::from_str(&tag_of(&bytes))
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let mut payload = Payload::from(bytes);
    if !payload.charge(account) {
        return Err(crate::http::memory::overloaded());
    }
    let mut response = respond_with(JSON, payload.into());
    response.headers_mut().insert(ETAG, tag);
    Ok(response)
}

/// Returns the part of a path after `/v1/orders/` or `/v1/rollouts/`.
fn named(path: &str) -> &str {
    path.split('/').nth(3).unwrap_or_default()
}

fn id_in(path: &str) -> Result<RolloutId, Problem> {
    let id = named(path).parse::<RolloutId>();
    id.map_err(|error| Problem::new(Code::InvalidRequest, error))
}

fn keyring_in(path: &str) -> Result<KeyringName, Problem> {
    named(path).parse::<KeyringName>().map_err(|error| {
        Problem::new(
            Code::InvalidRequest,
            format!("the path must end in a keyring's name: {error}"),
        )
    })
}

fn waiting(query: &str) -> Result<(Vec<KeyringName>, Duration), Problem> {
    let invalid = || {
        Problem::new(
            Code::InvalidRequest,
            format!("the query must be keyring=NAME, for each, and wait_seconds=0 to {MAX_WAIT}"),
        )
    };
    let (mut keyrings, mut wait): (Vec<KeyringName>, Option<u64>) = (Vec::new(), None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "keyring" => keyrings.push(value.parse().map_err(|_| invalid())?),
            "wait_seconds" => wait = value.parse().ok().filter(|wait| *wait <= MAX_WAIT),
            _ => return Err(invalid()),
        }
    }
    match wait {
        Some(wait) if !keyrings.is_empty() => Ok((keyrings, Duration::from_secs(wait))),
        _ => Err(invalid()),
    }
}

fn expected(headers: &HeaderMap) -> Result<Expected, Problem> {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match (value(IF_MATCH), value(IF_NONE_MATCH)) {
        (Some(tag), None) => Ok(Expected::Tag(tag.into())),
        (None, Some("*")) => Ok(Expected::Nothing),
        _ => Err(Problem::new(
            Code::InvalidRequest,
            "send If-Match with the journal's entity tag, or `If-None-Match: *` for a new one",
        )),
    }
}
