//! Responses with a secret's value, as JSON or bytes, and the problems of requests for one.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH},
};
use jiff::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use super::request::{Format, MAX_WORD, SecretQuery};
use crate::{
    backend::{BackendError, ErrorKind},
    encoding::NotBase64,
    http::{
        account::Account, memory::MemoryShare, payload::Payload, problem::Problem,
        response::ResponseBody,
    },
    secrets::{GetError, NoField, Secret, Served, VersionSelector},
    wire::{Code, JSON, OCTETS},
};

const SECRET_VERSION: HeaderName = HeaderName::from_static("sidekey-secret-version");
const SECRET_STAGE: HeaderName = HeaderName::from_static("sidekey-secret-stage");
/// For how many seconds the provider has failed to confirm the value.
const STALE: HeaderName = HeaderName::from_static("sidekey-stale");

/// The most that the JSON format has besides the value, in bytes.
const AROUND_VALUE: usize = 512 + 2 * MAX_WORD;

/// The JSON format of a value.
#[derive(Serialize)]
struct ValueJson<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<Zeroizing<String>>,
    version: &'a str,
    stage: &'static str,
    created_at: Option<Timestamp>,
    fetched_at: Timestamp,
    stale: bool,
}

/// Responds to a query with the value that was found.
pub(super) async fn respond(
    secret: &Secret,
    query: &SecretQuery,
    served: &Served,
    headers: &HeaderMap,
    account: &Arc<Account>,
) -> Result<Response<ResponseBody>, Problem> {
    let labels = served.value.labels();
    let (etag, content_type) = match query.format {
        Format::Octets => (&labels.octets, OCTETS),
        Format::Json => (&labels.json, JSON),
    };
    let is_unchanged = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .any(|value| matches(value, etag));
    let payload = if is_unchanged {
        Payload::from(Bytes::new())
    } else {
        payload(secret, query, served, account).await?
    };
    let mut response = Response::new(ResponseBody::from(payload));
    if is_unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    // Room for all of these and the two that hyper adds, so that the map does not grow.
    headers.reserve(8);
    if !is_unchanged {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ETAG, header_value(etag));
    headers.insert(SECRET_VERSION, header_value(&labels.version));
    headers.insert(
        SECRET_STAGE,
        HeaderValue::from_static(served.stage.as_str()),
    );
    if let Some(stale) = served.stale {
        headers.insert(STALE, stale.as_secs().into());
    }
    Ok(response)
}

/// Shares the text rather than copying it. Providers' versions are visible ASCII.
fn header_value(text: &Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text.clone()).unwrap_or(HeaderValue::from_static("?"))
}

async fn payload(
    secret: &Secret,
    query: &SecretQuery,
    served: &Served,
    account: &Arc<Account>,
) -> Result<Payload, Problem> {
    let value = &served.value;
    // For a field, or a copy of the value, and what it is decoded from or to.
    let reserve = |len: usize| account.reserve(3 * len);
    let zeroizing = |bytes, share: MemoryShare| Payload::zeroizing(bytes, share);
    let is_whole = query.field.is_none() && query.conversion.is_none();
    Ok(match query.format {
        Format::Octets if is_whole => value.bytes().clone().into(),
        Format::Json if is_whole && served.is_cacheable() => value
            .json(|| Bytes::from_owner(to_json(secret, served, value.bytes())))
            .into(),
        Format::Json if is_whole => {
            let share = account.reserve(json_memory(value.bytes())).await?;
            zeroizing(to_json(secret, served, value.bytes()), share)
        }
        format => {
            let (part, mut share) = match &query.field {
                Some(name) => {
                    let absent = |reason| no_field(secret, name, reason);
                    let field = value.field(name).map_err(absent)?;
                    let share = reserve(field.max_len()).await?;
                    (field.decode().map_err(absent)?, share)
                }
                None => {
                    let share = reserve(value.bytes().len()).await?;
                    (Zeroizing::new(value.bytes().to_vec()), share)
                }
            };
            let part = query.conversion.apply(part);
            let part = part.map_err(|NotBase64| not_base64(secret))?;
            match format {
                Format::Octets => zeroizing(part, share),
                Format::Json => {
                    charge_json(&part, &mut share, account).await?;
                    zeroizing(to_json(secret, served, &part), share)
                }
            }
        }
    })
}

/// Adds what the JSON of `part` takes to the share that `part` has.
async fn charge_json(
    part: &Zeroizing<Vec<u8>>,
    share: &mut MemoryShare,
    account: &Arc<Account>,
) -> Result<(), Problem> {
    let held = part.capacity() + json_memory(part);
    share.grow_to(account, held).await
}

fn to_json(secret: &Secret, served: &Served, value: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = std::str::from_utf8(value).ok();
    let value_base64 = text
        .is_none()
        .then(|| Zeroizing::new(STANDARD.encode(value)));
    let json_value = ValueJson {
        name: secret.name().as_str(),
        value: text,
        value_base64,
        version: served.value.version(),
        stage: served.stage.as_str(),
        created_at: served.value.created_at(),
        fetched_at: served.value.fetched_at(),
        stale: served.stale.is_some(),
    };
    // Large enough from the start: a buffer that grows leaves copies of the value behind.
    let mut json = Zeroizing::new(Vec::with_capacity(escaped_len(value) + AROUND_VALUE));
    match serde_json::to_writer(&mut *json, &json_value) {
        Ok(()) => json,
        Err(error) => unreachable!("strings and times serialize: {error}"),
    }
}

/// How much memory [`to_json`] takes, in bytes: base64, unless the value is text, and the JSON.
fn json_memory(value: &[u8]) -> usize {
    let is_text = std::str::from_utf8(value).is_ok();
    let base64 = if is_text { 0 } else { base64_len(value) };
    base64 + escaped_len(value) + AROUND_VALUE
}

/// The length of a value in JSON without quotes, in bytes (RFC 8259 §7).
fn escaped_len(value: &[u8]) -> usize {
    let length = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    match std::str::from_utf8(value) {
        Ok(text) => text.bytes().map(length).sum(),
        Err(_) => base64_len(value),
    }
}

/// The length of a value in base64 with padding (RFC 4648 §4).
fn base64_len(value: &[u8]) -> usize {
    value.len().div_ceil(3) * 4
}

/// Compares entity tags weakly (RFC 9110 §13.1.2).
fn matches(if_none_match: &HeaderValue, etag: &[u8]) -> bool {
    fn opaque(tag: &[u8]) -> &[u8] {
        tag.strip_prefix(b"W/").unwrap_or(tag)
    }
    let listed = if_none_match.as_bytes().trim_ascii();
    listed == b"*"
        || listed
            .split(|byte| *byte == b',')
            .any(|tag| opaque(tag.trim_ascii()) == opaque(etag))
}

fn no_field(secret: &Secret, field: &str, reason: NoField) -> Problem {
    let detail = format!("the value of {} {}", secret.name(), reason.explain(field));
    Problem::new(Code::SecretFieldNotFound, detail)
}

fn not_base64(secret: &Secret) -> Problem {
    let (name, expected) = (secret.name(), NotBase64::EXPECTED);
    let detail = format!("`decode`: this value or field of {name} is {expected}");
    Problem::new(Code::InvalidRequest, detail)
}

/// Explains to a caller why a value is not served. The provider's own message names locations, so
/// only the log and /status contain it.
pub(super) fn refused(secret: &Secret, which: &VersionSelector, refused: GetError) -> Problem {
    let name = secret.name();
    match refused {
        GetError::Provider(error) => provider_problem(name.as_str(), which, &error),
        GetError::PreviousExpired => Problem::new(
            Code::SecretNotFound,
            format!("{name} has no previous value: none was seen, or its `previous_ttl` has ended"),
        ),
        GetError::VersionTooOld { version } => Problem::new(
            Code::SecretVersionUnavailable,
            format!("the newest version of {name} at its provider is {version}"),
        )
        .retry_after(1),
    }
}

fn provider_problem(name: &str, which: &VersionSelector, error: &BackendError) -> Problem {
    let what = match which {
        VersionSelector::Current => format!("secret {name}"),
        VersionSelector::Previous => format!("the previous value of {name}"),
        VersionSelector::Pending => format!("the pending value of {name}"),
        VersionSelector::Version(_) => format!("this version of {name}"),
    };
    match error.kind {
        ErrorKind::NotFound => Problem::new(
            Code::SecretNotFound,
            format!("the provider does not have {what}"),
        ),
        ErrorKind::Denied => Problem::new(
            Code::ProviderDenied,
            format!("the sidecar may not read {what}; its log names the missing permission"),
        ),
        ErrorKind::Throttled => Problem::new(
            Code::ProviderThrottled,
            format!("can't read {what} at the moment; try again"),
        )
        .retry_after(5),
        ErrorKind::Unavailable
        | ErrorKind::Disabled
        | ErrorKind::Rejected
        | ErrorKind::Exchanged
        | ErrorKind::Conflict => Problem::new(
            Code::ProviderUnavailable,
            format!("can't read {what} at the moment; try again"),
        )
        .retry_after(1),
        ErrorKind::Misconfigured | ErrorKind::TooLarge => Problem::new(
            Code::ProviderUnavailable,
            format!("can't read {what}; the sidecar's log says why"),
        )
        .retry_after(30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Limits, http::account::testing::account};

    #[tokio::test]
    async fn all_that_a_json_response_holds_is_charged() {
        const TOTAL: usize = 1 << 20;
        const LEN: usize = 48 << 10;
        for (byte, json) in [
            // Escaped, each takes six bytes.
            (1, 6 * LEN),
            // Not text: base64 by itself and in the JSON.
            (0xff, 2 * (LEN / 3 * 4)),
        ] {
            let part = Zeroizing::new(vec![byte; LEN]);
            let account = account(TOTAL);
            let mut share = account.reserve(2 * LEN).await.expect("free");
            let charged = charge_json(&part, &mut share, &account).await;
            charged.expect("free");
            assert_eq!(account.free_memory(), TOTAL - LEN - json - AROUND_VALUE);
            // Seven times its length and 1 KiB at most, so that `SECRET_COST` suffices.
            assert!(LEN + json + AROUND_VALUE <= Limits::SECRET_COST * LEN);
            drop(share);
            assert_eq!(account.free_memory(), TOTAL);
        }
    }

    #[test]
    fn entity_tags_are_compared_weakly() {
        let matches = |listed| matches(&HeaderValue::from_static(listed), b"W/\"7.j\"");
        assert!(
            matches("W/\"7.j\"")
                && matches("\"7.j\"")
                && matches("\"a\", W/\"7.j\"")
                && matches("*")
        );
        assert!(!matches("\"7.b\"") && !matches("\"\""));
    }

    #[test]
    fn the_json_buffer_never_grows() {
        for value in [
            &b"plain"[..],
            b"a\"b\\c\n\r\t\x08\x0c\0\x01\x0b\x1f\x7f",
            "\u{e9}\u{2028}".as_bytes(),
            &[0xff; 1000],
            &[0xff; 1001],
        ] {
            let json = match std::str::from_utf8(value) {
                Ok(text) => serde_json::to_string(text).expect("text").len() - 2,
                Err(_) => STANDARD.encode(value).len(),
            };
            assert_eq!(json, escaped_len(value), "{value:?}");
        }
    }
}
