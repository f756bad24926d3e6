//! The query and headers of `GET /v1/secrets/{name}`.

use hyper::{
    HeaderMap,
    header::{ACCEPT, CACHE_CONTROL},
};

use crate::{
    http::problem::Problem,
    model::Conversion,
    secrets::{Freshness, SecretRequest, VersionSelector},
    wire::{Code, JSON, OCTETS},
};

/// The longest version or field in a query, in bytes.
pub(super) const MAX_WORD: usize = 256;
const UNKNOWN_PARAMETER: &str =
    "unknown parameter; valid parameters: stage, version, field, min_version, decode, trim";

/// A request for a secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SecretQuery {
    pub(super) request: SecretRequest,
    pub(super) field: Option<String>,
    pub(super) conversion: Conversion,
    pub(super) format: Format,
}

/// The format of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Octets,
}

impl SecretQuery {
    /// # Errors
    /// [`Code::InvalidRequest`]
    pub(super) fn parse(query: Option<&str>, headers: &HeaderMap) -> Result<Self, Problem> {
        let (mut version, mut field, mut min_version) = (None, None, None);
        let mut conversion = Conversion::default();
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let set = match &*key {
                "stage" => set(&mut version, stage(&value)?),
                "version" => set(&mut version, VersionSelector::Version(word(&key, &value)?)),
                "field" => set(&mut field, word(&key, &value)?),
                "min_version" => set(&mut min_version, word(&key, &value)?),
                _ => match conversion.set(&key, &value) {
                    Ok(true) => Some(()),
                    Ok(false) => return Err(invalid(UNKNOWN_PARAMETER)),
                    Err(error) => {
                        return Err(Problem::new(Code::InvalidRequest, error.to_string()));
                    }
                },
            };
            set.ok_or_else(|| {
                invalid(
                    "`stage` and `version` are mutually exclusive; no parameter may be repeated",
                )
            })?;
        }
        let version = version.unwrap_or(VersionSelector::Current);
        let freshness = match min_version {
            Some(_) if version != VersionSelector::Current => {
                return Err(invalid("`min_version` applies only to the current value"));
            }
            Some(min_version) => Freshness::AtLeast(min_version),
            None if requires_fresh(headers) => Freshness::Revalidated,
            None => Freshness::Cached,
        };
        Ok(Self {
            request: SecretRequest { version, freshness },
            field,
            conversion,
            format: format(headers),
        })
    }
}

fn invalid(detail: &'static str) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

/// Returns None if the slot was set already.
fn set<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

fn stage(text: &str) -> Result<VersionSelector, Problem> {
    match text {
        "current" => Ok(VersionSelector::Current),
        "previous" => Ok(VersionSelector::Previous),
        "pending" => Ok(VersionSelector::Pending),
        _ => Err(invalid("`stage` must be current, previous or pending")),
    }
}

fn word(key: &str, text: &str) -> Result<String, Problem> {
    if text.is_empty() || text.len() > MAX_WORD || text.contains(char::is_control) {
        return Err(Problem::new(
            Code::InvalidRequest,
            format!("`{key}` must have 1 to {MAX_WORD} bytes and no control characters"),
        ));
    }
    Ok(text.to_owned())
}

/// Whether `Cache-Control` contains `no-cache` (RFC 9111 §5.2.1.4).
fn requires_fresh(headers: &HeaderMap) -> bool {
    let values = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"))
}

/// Chooses JSON unless `Accept` prefers bytes (RFC 9110 §12.5.1). At equal weights, an exact media
/// type takes precedence over a range.
fn format(headers: &HeaderMap) -> Format {
    // By far the most common case.
    if !headers.contains_key(ACCEPT) {
        return Format::Json;
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
        Format::Octets
    } else {
        Format::Json
    }
}

/// A quality value in thousandths.
fn weight(text: &str) -> u32 {
    let value: f32 = text.parse().unwrap_or(0.0);
    (value.clamp(0.0, 1.0) * 1000.0) as u32
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    fn parse(query: &str, pairs: &[(HeaderName, &'static str)]) -> Result<SecretQuery, Code> {
        SecretQuery::parse(Some(query), &headers(pairs)).map_err(|problem| problem.code)
    }

    #[test]
    fn a_query_selects_value_freshness_and_format() {
        let plain = parse("", &[]).expect("query");
        assert_eq!(
            plain.request,
            SecretRequest {
                version: VersionSelector::Current,
                freshness: Freshness::Cached
            }
        );
        assert_eq!((plain.field, plain.format), (None, Format::Json));
        let asked = parse("stage=previous&field=pass%20word", &[(ACCEPT, OCTETS)]).expect("query");
        assert_eq!(
            (asked.request.version, asked.field.as_deref(), asked.format),
            (VersionSelector::Previous, Some("pass word"), Format::Octets)
        );
        let converted = parse("decode=base64&trim=newline&field=a", &[]).expect("query");
        let conversion = converted.conversion;
        assert!(conversion.decode_base64 && conversion.trim_newline);
        let fresh = parse("", &[(CACHE_CONTROL, "max-age=0, No-Cache")]).expect("query");
        assert_eq!(fresh.request.freshness, Freshness::Revalidated);
        assert_eq!(
            parse("min_version=7", &[])
                .expect("query")
                .request
                .freshness,
            Freshness::AtLeast("7".into())
        );
        for wrong in [
            "stage=next",
            "version=",
            "stage=current&version=1",
            "version=1&version=2",
            "x=1",
            "version=%00",
            "stage=previous&min_version=1",
            "decode=hex",
            "trim",
            "trim=newline&trim=newline",
        ] {
            assert_eq!(parse(wrong, &[]), Err(Code::InvalidRequest), "{wrong}");
        }
    }

    #[test]
    fn bytes_are_chosen_only_if_accept_prefers_them() {
        for (accept, expected) in [
            ("*/*", Format::Json),
            ("application/json", Format::Json),
            ("application/octet-stream", Format::Octets),
            ("application/octet-stream, */*", Format::Octets),
            (
                "application/octet-stream;q=0.5, application/json",
                Format::Json,
            ),
            (
                "application/octet-stream, application/json;q=0.9",
                Format::Octets,
            ),
            ("text/html", Format::Json),
            ("application/octet-stream;q=0", Format::Json),
        ] {
            assert_eq!(format(&headers(&[(ACCEPT, accept)])), expected, "{accept}");
        }
    }
}
