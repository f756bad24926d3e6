//! `GET /v1/secrets/{name}`: from a question to a value's answer, as JSON or as the bytes that it is.

use base64::Engine;
use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH},
};
use jiff::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use super::STANDARD;
use crate::http::{
    body::BodyLimits,
    problem::{Code, Problem},
    reply::Reply,
};
use crate::{
    backend::{SecretError, SecretFault},
    secrets::{Ask, Demand, NoField, Refused, Secret, Served, Which},
    wire::{JSON, OCTETS},
};

const SECRET_VERSION: HeaderName = HeaderName::from_static("sidekey-secret-version");
const SECRET_STAGE: HeaderName = HeaderName::from_static("sidekey-secret-stage");
/// For how many seconds a value has not been confirmed, though it should have been.
const STALE: HeaderName = HeaderName::from_static("sidekey-stale");
/// The longest version or field that anybody asks for.
const LONGEST: usize = 256;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) ask: Ask,
    field: Option<String>,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Octets,
}

impl Question {
    pub(crate) fn parse(query: Option<&str>, headers: &HeaderMap) -> Result<Self, Problem> {
        let (mut which, mut field, mut least) = (None, None, None);
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let asked = match &*key {
                "stage" => set(&mut which, stage(&value)?),
                "version" => set(&mut which, Which::Version(word(&key, &value)?)),
                "field" => set(&mut field, word(&key, &value)?),
                "min_version" => set(&mut least, word(&key, &value)?),
                _ => {
                    return Err(invalid(
                        "the query has stage or version, field, and min_version; nothing else",
                    ));
                }
            };
            asked.ok_or_else(|| {
                invalid("stage and version exclude each other, and nothing stands there twice")
            })?;
        }
        let which = which.unwrap_or(Which::Current);
        let demand = match least {
            Some(_) if which != Which::Current => {
                return Err(invalid("min_version is of the current value alone"));
            }
            Some(least) => Demand::AtLeast(least),
            None if demands_fresh(headers) => Demand::Fresh,
            None => Demand::Kept,
        };
        Ok(Self {
            ask: Ask { which, demand },
            field,
            form: form(headers),
        })
    }
}

fn invalid(detail: &'static str) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

/// Nothing, if it was set already.
fn set<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

fn stage(text: &str) -> Result<Which, Problem> {
    match text {
        "current" => Ok(Which::Current),
        "previous" => Ok(Which::Previous),
        "pending" => Ok(Which::Pending),
        _ => Err(invalid("a stage is current, previous or pending")),
    }
}

fn word(key: &str, text: &str) -> Result<String, Problem> {
    if text.is_empty() || text.len() > LONGEST || text.contains(char::is_control) {
        return Err(Problem::new(
            Code::InvalidRequest,
            format!("{key} has 1 to {LONGEST} characters, none of them a control"),
        ));
    }
    Ok(text.to_owned())
}

/// RFC 9111 §5.2.1.4.
fn demands_fresh(headers: &HeaderMap) -> bool {
    let values = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"))
}

/// JSON, unless the bytes are liked better (RFC 9110 §12.5.1). Of two that are liked as well, the one that is named counts.
fn form(headers: &HeaderMap) -> Form {
    // By far the most common.
    if !headers.contains_key(ACCEPT) {
        return Form::Json;
    }
    let (mut json, mut octets) = ((0, 0), (0, 0));
    let values = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default();
        let weight = parts
            .find_map(|parameter| parameter.strip_prefix("q="))
            .map_or(1000, weight);
        match essence.to_ascii_lowercase().as_str() {
            JSON => json = json.max((weight, 1)),
            OCTETS => octets = octets.max((weight, 1)),
            "*/*" | "application/*" => {
                (json, octets) = (json.max((weight, 0)), octets.max((weight, 0)))
            }
            _ => {}
        }
    }
    if octets > json && octets.0 > 0 {
        Form::Octets
    } else {
        Form::Json
    }
}

/// In thousandths.
fn weight(text: &str) -> u32 {
    let value: f32 = text.parse().unwrap_or(0.0);
    (value.clamp(0.0, 1.0) * 1000.0) as u32
}

/// What callers are shown of a secret: nothing of its value.
#[derive(Serialize)]
pub(crate) struct SecretDescription {
    name: String,
    version: String,
    created_at: Option<Timestamp>,
    confirmed_at: Timestamp,
    stale: bool,
}

impl SecretDescription {
    /// Nothing while none is held.
    pub(crate) fn of(secret: &Secret) -> Option<Self> {
        let standing = secret.standing();
        let current = standing.current?;
        Some(Self {
            name: secret.name().to_string(),
            version: current.version,
            created_at: current.created_at,
            confirmed_at: current.confirmed_at,
            stale: standing.failure.is_some(),
        })
    }
}

/// A value's answer.
#[derive(Serialize)]
struct Answer<'a> {
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

/// Answers a question with what was found.
pub(crate) async fn answer(
    secret: &Secret,
    question: &Question,
    served: &Served,
    headers: &HeaderMap,
    bodies: &BodyLimits,
) -> Result<Response<Reply>, Problem> {
    let labels = served.value.labels();
    let etag = if question.form == Form::Octets {
        &labels.octets
    } else {
        &labels.json
    };
    let is_known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .any(|value| matches(value, etag));
    let body = match (&question.field, question.form) {
        _ if is_known => Bytes::new(),
        (None, Form::Octets) => served.value.bytes().clone(),
        (None, Form::Json) if served.is_usual() => served
            .value
            .answer(|| Bytes::from_owner(to_json(secret, served, served.value.bytes()))),
        (None, Form::Json) => {
            let share = bodies.reserve(3 * served.value.bytes().len()).await?;
            share.keep_zeroized(to_json(secret, served, served.value.bytes()))
        }
        (Some(field), form) => {
            let share = bodies.reserve(3 * served.value.bytes().len()).await?;
            let value = served
                .value
                .field(field)
                .map_err(|why| no_field(secret, field, why))?;
            share.keep_zeroized(if form == Form::Octets {
                value
            } else {
                to_json(secret, served, &value)
            })
        }
    };
    let mut response = Response::new(Reply::from(body));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    // All of them, and the two that hyper adds, without growing.
    headers.reserve(8);
    if !is_known {
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(if question.form == Form::Octets {
                OCTETS
            } else {
                JSON
            }),
        );
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ETAG, etag.clone());
    headers.insert(SECRET_VERSION, labels.version.clone());
    headers.insert(
        SECRET_STAGE,
        HeaderValue::from_static(served.stage.as_str()),
    );
    if let Some(stale) = served.stale {
        headers.insert(STALE, stale.as_secs().into());
    }
    Ok(response)
}

/// Made once for each value that is kept; others cost a buffer that is zeroized.
fn to_json(secret: &Secret, served: &Served, value: &[u8]) -> Zeroizing<Vec<u8>> {
    let text = std::str::from_utf8(value).ok();
    let value_base64 = text
        .is_none()
        .then(|| Zeroizing::new(STANDARD.encode(value)));
    let answer = Answer {
        name: secret.name().as_str(),
        value: text,
        value_base64,
        version: served.value.version(),
        stage: served.stage.as_str(),
        created_at: served.value.created_at(),
        fetched_at: served.value.fetched_at(),
        stale: served.stale.is_some(),
    };
    // As long as it can get, for a buffer that grows leaves copies behind.
    let mut json = Zeroizing::new(Vec::with_capacity(escaped(value) + 512 + 2 * LONGEST));
    match serde_json::to_writer(&mut *json, &answer) {
        Ok(()) => json,
        Err(error) => unreachable!("plain members serialize: {error}"),
    }
}

/// How long a value is in JSON at most.
fn escaped(value: &[u8]) -> usize {
    let length = |byte: &u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    // In base64 it takes four thirds.
    value
        .iter()
        .map(length)
        .sum::<usize>()
        .max(value.len() / 3 * 4 + 4)
}

/// RFC 9110 §13.1.2, by weak comparison.
fn matches(if_none_match: &HeaderValue, etag: &HeaderValue) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let (Ok(listed), Ok(etag)) = (if_none_match.to_str(), etag.to_str()) else {
        return false;
    };
    listed.trim() == "*" || listed.split(',').any(|tag| plain(tag) == plain(etag))
}

fn no_field(secret: &Secret, field: &str, why: NoField) -> Problem {
    let name = secret.name();
    let detail = match why {
        NoField::NotAnObject => {
            format!("the value of {name} is no JSON object, so it has no fields")
        }
        NoField::Missing => format!("the value of {name} has no member {field:?}"),
    };
    Problem::new(Code::SecretFieldNotFound, detail)
}

/// Why nothing is handed out, in the caller's terms. What its provider said names places, not values; logs and /status have it whole.
pub(crate) fn refused(secret: &Secret, which: &Which, refused: Refused) -> Problem {
    let name = secret.name();
    match refused {
        Refused::Provider(error) => provider(name.as_str(), which, &error),
        Refused::Over => Problem::new(
            Code::SecretNotFound,
            format!("{name} has no previous value: none was seen, or its `previous_ttl` is over"),
        ),
        Refused::TooOld { version } => {
            let detail =
                format!("the newest version of {name} that its provider gives is {version}");
            Problem::new(Code::SecretVersionUnavailable, detail).retry_after(1)
        }
    }
}

fn provider(name: &str, which: &Which, error: &SecretError) -> Problem {
    let what = match which {
        Which::Current => format!("{name} at its provider"),
        Which::Previous => format!("the previous value of {name} at its provider"),
        Which::Pending => format!("the pending value of {name} at its provider"),
        Which::Version(_) => format!("that version of {name} at its provider"),
    };
    match error.fault {
        SecretFault::NotFound => Problem::new(Code::SecretNotFound, format!("there is no {what}")),
        SecretFault::Denied => Problem::new(
            Code::ProviderDenied,
            format!("the sidecar may not read {what}; its log says what is missing"),
        ),
        SecretFault::Throttled => {
            Problem::new(Code::ProviderThrottled, format!("can't read {what} now")).retry_after(5)
        }
        SecretFault::Unavailable => {
            Problem::new(Code::ProviderUnavailable, format!("can't read {what} now")).retry_after(1)
        }
        SecretFault::Misconfigured | SecretFault::TooLong => Problem::new(
            Code::ProviderUnavailable,
            format!("can't read {what}; the sidecar's log says why"),
        )
        .retry_after(30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    fn parse(query: &str, pairs: &[(HeaderName, &'static str)]) -> Result<Question, Code> {
        Question::parse(Some(query), &headers(pairs)).map_err(|problem| problem.code)
    }

    #[test]
    fn a_question_says_which_value_how_fresh_and_in_what_form() {
        let plain = parse("", &[]).expect("question");
        assert_eq!(
            plain.ask,
            Ask {
                which: Which::Current,
                demand: Demand::Kept
            }
        );
        assert_eq!((plain.field, plain.form), (None, Form::Json));
        let asked =
            parse("stage=previous&field=pass%20word", &[(ACCEPT, OCTETS)]).expect("question");
        assert_eq!(
            (asked.ask.which, asked.field.as_deref(), asked.form),
            (Which::Previous, Some("pass word"), Form::Octets)
        );
        let fresh = parse("", &[(CACHE_CONTROL, "max-age=0, No-Cache")]).expect("question");
        assert_eq!(fresh.ask.demand, Demand::Fresh);
        assert_eq!(
            parse("min_version=7", &[]).expect("question").ask.demand,
            Demand::AtLeast("7".into())
        );
        for wrong in [
            "stage=next",
            "version=",
            "stage=current&version=1",
            "version=1&version=2",
            "x=1",
            "version=%00",
            "stage=previous&min_version=1",
        ] {
            assert_eq!(parse(wrong, &[]), Err(Code::InvalidRequest), "{wrong}");
        }
    }

    #[test]
    fn bytes_come_where_they_are_liked_better_than_json() {
        for (accept, expected) in [
            ("*/*", Form::Json),
            ("application/json", Form::Json),
            ("application/octet-stream", Form::Octets),
            ("application/octet-stream, */*", Form::Octets),
            (
                "application/octet-stream;q=0.5, application/json",
                Form::Json,
            ),
            (
                "application/octet-stream, application/json;q=0.9",
                Form::Octets,
            ),
            ("text/html", Form::Json),
            ("application/octet-stream;q=0", Form::Json),
        ] {
            assert_eq!(form(&headers(&[(ACCEPT, accept)])), expected, "{accept}");
        }
    }

    #[test]
    fn tags_are_compared_weakly() {
        let matches = |listed| {
            matches(
                &HeaderValue::from_static(listed),
                &HeaderValue::from_static("W/\"7.j\""),
            )
        };
        assert!(
            matches("W/\"7.j\"")
                && matches("\"7.j\"")
                && matches("\"a\", W/\"7.j\"")
                && matches("*")
        );
        assert!(!matches("\"7.b\"") && !matches("\"\""));
    }

    #[test]
    fn a_buffer_is_made_as_long_as_json_gets() {
        for value in [
            &b"plain"[..],
            b"a\"b\\c\n\x01\x7f",
            "\u{e9}\u{2028}".as_bytes(),
            &[0xff; 1000],
        ] {
            let json = match std::str::from_utf8(value) {
                Ok(text) => serde_json::to_string(text).expect("text").len() - 2,
                Err(_) => STANDARD.encode(value).len(),
            };
            assert!(json <= escaped(value), "{json} {}", escaped(value));
        }
    }
}
