//! `[secrets]` and `[[secret]]`: the secrets to serve.

use std::time::Duration;

use super::{
    SecretMapping,
    reader::{LONGEST, MIB, Parsed, Section, Value},
};
use crate::model::{Malformed, NamePattern, SecretName, SecretSource};

/// All secrets, and what they share.
#[derive(Debug, Clone, PartialEq)]
pub struct Secrets {
    /// How long a missing value is reported missing without asking the provider again.
    pub miss_ttl: Duration,
    /// Minimum time between two reads of one secret that callers force.
    pub force_interval: Duration,
    /// The longest value, in bytes.
    pub value_bytes: usize,
    /// The most secrets that wildcards may create at once.
    pub wild_names: usize,
    /// The secrets with a plain name.
    pub named: Vec<Secret>,
    /// The secrets with a wildcard in their name.
    pub mappings: Vec<SecretMapping>,
}

impl Default for Secrets {
    fn default() -> Self {
        Self {
            miss_ttl: Duration::from_secs(5),
            force_interval: Duration::from_secs(1),
            value_bytes: 256 << 10,
            wild_names: 1000,
            named: Vec::new(),
            mappings: Vec::new(),
        }
    }
}

impl Secrets {
    /// Returns whether no secret is configured.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.mappings.is_empty()
    }

    /// Returns the secret of this name, or the one that the first matching wildcard makes of it.
    pub fn find(&self, name: &str) -> Option<Secret> {
        let own = self
            .named
            .iter()
            .find(|secret| secret.name.as_str() == name)
            .cloned();
        own.or_else(|| {
            self.mappings
                .iter()
                .find_map(|mapping| mapping.secret(name))
        })
    }
}

/// A secret to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Secret {
    /// The name under which it is served.
    pub name: SecretName,
    /// Where it is stored.
    pub source: SecretSource,
    /// Whether readiness waits for it.
    pub required: bool,
    /// How its values are cached.
    pub cache: CachePolicy,
}

/// How a secret's values are cached.
#[derive(Debug, Clone, PartialEq)]
pub struct CachePolicy {
    /// How often the provider is asked without a notification. Spread by ±25 %.
    pub refresh: Duration,
    /// How long the previous value stays available.
    pub previous_ttl: Duration,
    /// How long a value is served while its provider fails.
    pub stale_if_error: Duration,
    /// The age at which the provider should have another value, or at which leased credentials are
    /// replaced.
    pub rotate_after: Option<Duration>,
    /// Whether leases are revoked once their credentials are no longer needed.
    pub revoke: bool,
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self {
            refresh: Duration::from_secs(300),
            previous_ttl: Duration::from_secs(3600),
            stale_if_error: Duration::from_secs(24 * 3600),
            rotate_after: None,
            revoke: false,
        }
    }
}

/// Each secret's name or pattern, and its line.
pub(super) type SecretNames = Vec<(NamePattern, usize)>;

pub(super) fn secrets(root: &Section<'_>) -> (Parsed<Secrets>, SecretNames) {
    let mut cache = CachePolicy::default();
    let common = root.section("secrets", |section| {
        let (common, shared) = common(section);
        cache = shared?;
        common
    });
    let (mut names, mut mappings) = (Vec::new(), Vec::new());
    let named = root.sections("secret", |section| {
        entry(section, &cache, &mut names, &mut mappings)
    });
    let secrets = || {
        Ok(Secrets {
            named: named?.into_iter().flatten().collect(),
            mappings,
            ..common?
        })
    };
    (secrets(), names)
}

fn common(section: &Section<'_>) -> (Parsed<Secrets>, Parsed<CachePolicy>) {
    let default = Secrets::default();
    let cache = cache_policy(section, &CachePolicy::default());
    let miss_ttl = section.or("miss_ttl", default.miss_ttl, at_least_a_millisecond);
    let force_interval = section.or(
        "force_interval",
        default.force_interval,
        at_least_a_millisecond,
    );
    let value_bytes = section.or("value_bytes", default.value_bytes, |value| {
        value.size(1024..=16 * MIB)
    });
    let wild_names = section.or("wild_names", default.wild_names, |value| {
        value.integer(1..=100_000)
    });
    let common = || {
        Ok(Secrets {
            miss_ttl: miss_ttl?,
            force_interval: force_interval?,
            value_bytes: value_bytes?,
            wild_names: wild_names?,
            ..default
        })
    };
    (common(), cache)
}

fn at_least_a_millisecond(value: &Value<'_>) -> Parsed<Duration> {
    value.duration(Duration::from_millis(1)..=LONGEST)
}

fn cache_policy(section: &Section<'_>, default: &CachePolicy) -> Parsed<CachePolicy> {
    let any = |value: &Value<'_>| value.duration(Duration::ZERO..=LONGEST);
    let refresh = section.or("refresh", default.refresh, |value| {
        value.duration(Duration::from_millis(100)..=LONGEST)
    });
    let previous_ttl = section.or("previous_ttl", default.previous_ttl, any);
    let stale_if_error = section.or("stale_if_error", default.stale_if_error, any);
    let rotate_after = section.maybe("rotate_after", |value| {
        value.duration(Duration::from_secs(1)..=LONGEST)
    });
    let revoke = section.or("revoke", default.revoke, Value::boolean);
    Ok(CachePolicy {
        refresh: refresh?,
        previous_ttl: previous_ttl?,
        stale_if_error: stale_if_error?,
        rotate_after: rotate_after?.or(default.rotate_after),
        revoke: revoke?,
    })
}

/// Reads a `[[secret]]`. One with a wildcard goes to `mappings`, and `None` is returned.
fn entry(
    section: &Section<'_>,
    default: &CachePolicy,
    names: &mut SecretNames,
    mappings: &mut Vec<SecretMapping>,
) -> Parsed<Option<Secret>> {
    let name = section
        .required("name")
        .and_then(|value| new_name(&value, names));
    let cache = cache_policy(section, default);
    let is_wildcard = name.as_ref().is_ok_and(NamePattern::is_wildcard);
    let source = section
        .required("source")
        .and_then(|value| source(&value, is_wildcard));
    if is_wildcard {
        let allow = section
            .required("allow")
            .and_then(|value| allowed_names(&value));
        mappings.push(SecretMapping {
            name: name?,
            source: source?,
            folder: section.folder().to_owned(),
            allow: allow?,
            cache: cache?,
        });
        return Ok(None);
    }
    let required = section.or("required", false, Value::boolean);
    let (name, source) = (name?.to_string(), source?);
    let malformed = |error: Malformed| section.problem(&error.to_string());
    let source: SecretSource = source.parse().map_err(malformed)?;
    Ok(Some(Secret {
        name: name.parse().map_err(malformed)?,
        source: source.anchored(section.folder()),
        required: required?,
        cache: cache?,
    }))
}

fn allowed_names(value: &Value<'_>) -> Parsed<Vec<NamePattern>> {
    let allow = value.list(|item| item.parsed())?;
    if allow.is_empty() {
        return Err(value.problem("must not be empty; list the names that may be fetched"));
    }
    Ok(allow)
}

fn new_name(value: &Value<'_>, names: &mut SecretNames) -> Parsed<NamePattern> {
    let pattern: NamePattern = value.parsed()?;
    if let Some((_, line)) = names.iter().find(|(name, _)| *name == pattern) {
        return Err(value.problem(format_args!(
            "duplicate secret \"{pattern}\", already defined on line {line}"
        )));
    }
    names.push((pattern.clone(), value.line()));
    Ok(pattern)
}

/// Returns the text of a valid source, which has one `*` if the name has one.
fn source(value: &Value<'_>, is_wildcard: bool) -> Parsed<String> {
    let text = value.nonempty_text()?;
    match (text.matches('*').count(), is_wildcard) {
        (1, true) | (0, false) => {}
        (_, true) => {
            return Err(value.problem(
                "must contain exactly one `*`, which is replaced by what the `*` in name matches",
            ));
        }
        (_, false) => return Err(value.problem("contains `*`, but name doesn't")),
    }
    match text.replace('*', "x").parse::<SecretSource>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(value.problem(error)),
    }
}

/// Reads a pattern in a rule, which must cover a configured secret or be covered by one.
pub(super) fn known_secret(value: &Value<'_>, names: &SecretNames) -> Parsed<NamePattern> {
    let pattern: NamePattern = value.parsed()?;
    let text = pattern.to_string();
    let is_known = names.iter().any(|(name, _)| {
        // Tests each pattern as if it were a name, because either may be the wider one.
        *name == pattern
            || name.covers(&text.replace('*', "x"))
            || pattern.covers(&name.to_string().replace('*', "x"))
    });
    if is_known {
        Ok(pattern)
    } else {
        Err(value.missing(format_args!(
            "unknown secret {text:?}; no [[secret]] matches it"
        )))
    }
}
