//! `[limits]` and `[timeouts]`.

use std::time::Duration;

use super::reader::{INSTANT, KIB, MIB, Parsed, Section, Value};
use crate::model::Span;

/// Limits on requests and connections. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The longest octet-stream body that becomes a message; longer ones become streams.
    pub body: usize,
    /// The longest JSON body.
    pub json_body: usize,
    /// The memory that all request and response bodies share.
    pub body_memory: usize,
    /// The most items of a batch.
    pub batch_items: usize,
    /// The most concurrent connections of each listener.
    pub connections: usize,
    /// The longest request head, at least 8 KiB.
    pub header_bytes: usize,
    /// The most concurrent HTTP/2 streams of a connection.
    pub streams: u32,
}

impl Limits {
    /// The memory for a JSON request, as a multiple of its body: text, items and response.
    pub const JSON_COST: usize = 3;
    /// The memory for a JSON response with a secret, as a multiple of the longest value: a copy of
    /// it, and JSON, which may take six bytes for each of its bytes and 1 KiB around them.
    pub const SECRET_COST: usize = 8;
    /// The memory for one result of a JSON batch, in addition to [`Limits::JSON_COST`]: the longest
    /// problem, or what a ciphertext adds to its plaintext.
    pub const JSON_ITEM_COST: usize = 1 << 10;
    /// The memory for a streamed body: one chunk in, one chunk out, and the connection's
    /// read-ahead.
    pub const FLOW_COST: usize = 192 << 10;
    /// The memory for a long item of a binary batch and its response, as a multiple of the item,
    /// in addition to [`Limits::FLOW_COST`].
    pub const ITEM_COST: usize = 2;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 1 << 20,
            json_body: 4 << 20,
            body_memory: 64 << 20,
            batch_items: 1000,
            connections: 1024,
            header_bytes: 16 << 10,
            streams: 64,
        }
    }
}

/// Time-outs of requests and connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// For a request's head, from its first byte.
    pub header: Duration,
    /// For a request's body to arrive, and for its response to be read.
    pub body: Duration,
    /// For the next request on an open connection.
    pub idle: Duration,
    /// For requests in flight after SIGTERM.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            drain: Duration::from_secs(25),
        }
    }
}

pub(super) fn limits(section: &Section<'_>) -> Parsed<Limits> {
    let default = Limits::default();
    let body = section.or("body", default.body, |value| value.size(1..=16 * MIB));
    let json_body = section.or("json_body", default.json_body, |value| {
        value.size(KIB..=64 * MIB)
    });
    // An invalid body limit bounds nothing, so that one mistake isn't reported twice.
    let item = Limits::ITEM_COST * (body.unwrap_or(1) + KIB) + Limits::FLOW_COST;
    let longest_body = item.max(Limits::JSON_COST * json_body.unwrap_or(1));
    let body_memory = section.or("body_memory", default.body_memory, |value| {
        body_memory(value, longest_body)
    });
    let batch_items = section.or("batch_items", default.batch_items, |value| {
        value.integer(1..=100_000)
    });
    let connections = section.or("connections", default.connections, |value| {
        value.integer(1..=100_000)
    });
    let header_bytes = section.or("header_bytes", default.header_bytes, |value| {
        value.size(8 * KIB..=MIB)
    });
    let streams = section.or("streams", default.streams, |value| {
        value.integer(1..=10_000)
    });
    Ok(Limits {
        body: body?,
        json_body: json_body?,
        body_memory: body_memory?,
        batch_items: batch_items?,
        connections: connections?,
        header_bytes: header_bytes?,
        streams: streams?,
    })
}

fn body_memory(value: &Value<'_>, longest_body: usize) -> Parsed<usize> {
    match value.size(1..=1024 * MIB)? {
        bytes if bytes >= longest_body => Ok(bytes),
        _ => Err(value.problem(
            "must hold the longest body: at least 2 * limits.body + 194 KiB, and \
             3 * limits.json_body",
        )),
    }
}

pub(super) fn timeouts(section: &Section<'_>) -> Parsed<Timeouts> {
    let up_to_a_day = |value: &Value<'_>| value.duration(INSTANT..=Span::from_days(1).0);
    let default = Timeouts::default();
    let header = section.or("header", default.header, up_to_a_day);
    let body = section.or("body", default.body, up_to_a_day);
    let idle = section.or("idle", default.idle, up_to_a_day);
    let drain = section.or("drain_timeout", default.drain, up_to_a_day);
    Ok(Timeouts {
        header: header?,
        body: body?,
        idle: idle?,
        drain: drain?,
    })
}
