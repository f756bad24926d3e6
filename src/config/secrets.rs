//! The secrets that are served: where each comes from, how fresh it is kept, and how long it outlives its provider.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::reader::{Read, Section, Value};
use crate::model::{Malformed, NamePattern, SecretName, SecretSource, Span};

/// How all secrets are kept.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// How long it is remembered that a provider gave nothing.
    pub miss_ttl: Duration,
    /// The least time between two reads of one secret that callers demanded.
    pub force_interval: Duration,
    /// The longest value, in bytes.
    pub value_bytes: usize,
    /// The most secrets at once that stand under a `*`.
    pub wild_names: usize,
    /// The secrets with a name of their own.
    pub named: Vec<Secret>,
    /// The names with a `*`.
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
    /// Whether any is configured.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.mappings.is_empty()
    }

    /// The secret that a name stands for: its own, or what the first mapping that covers it makes of it.
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

/// One secret.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Its name here.
    pub name: SecretName,
    /// Where it comes from.
    pub source: SecretSource,
    /// Whether the sidecar is ready only once it is there.
    pub required: bool,
    /// How it is kept.
    pub keeping: Keeping,
}

/// How a secret is kept.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// How often the provider is asked without a hint. Spread by ±25 %.
    pub refresh: Duration,
    /// How long the value before the current one stays available.
    pub previous_ttl: Duration,
    /// How long a value is served that the provider doesn't confirm when it is asked.
    pub stale_if_error: Duration,
    /// The age at which the provider is expected to have another value, or leased credentials are replaced.
    pub rotate_after: Option<Duration>,
    /// Whether leases are given back once nobody needs them any more.
    pub revoke: bool,
}

impl Default for Keeping {
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

/// Many secrets: the `*` in the name is the `*` in the source.
#[derive(Debug, Clone)]
pub struct SecretMapping {
    name: NamePattern,
    source: String,
    folder: PathBuf,
    allow: Vec<NamePattern>,
    keeping: Keeping,
}

impl SecretMapping {
    /// The names.
    pub(super) fn name(&self) -> &NamePattern {
        &self.name
    }

    /// The files that they come from, with the `*`; none if they come from elsewhere.
    pub(super) fn files(&self) -> Option<PathBuf> {
        match self
            .source
            .parse::<SecretSource>()
            .ok()?
            .anchored(&self.folder)
        {
            SecretSource::File(path) => Some(path),
            _ => None,
        }
    }

    fn secret(&self, name: &str) -> Option<Secret> {
        let matched = self.name.matched(name)?;
        // Nothing that leads out of a folder, and nothing that its owner hid.
        let is_plain = !matched.starts_with('.');
        if !is_plain || !self.allow.iter().any(|allowed| allowed.covers(name)) {
            return None;
        }
        let source: SecretSource = self.source.replace('*', matched).parse().ok()?;
        let (name, source) = (name.parse().ok()?, source.anchored(&self.folder));
        Some(Secret {
            name,
            source,
            required: false,
            keeping: self.keeping.clone(),
        })
    }
}

/// The name of a secret or a mapping as it stands in the file, and its line.
type Named = (NamePattern, usize);

pub(super) fn secrets(root: &Section<'_>, folder: &Path, names: &mut Vec<Named>) -> Read<Secrets> {
    let mut keeping = Keeping::default();
    let all = root.section("secrets", |section| {
        let default = Secrets::default();
        let common = keeping_of(section, &Keeping::default());
        let miss_ttl = section.or("miss_ttl", default.miss_ttl, some_time);
        let force_interval = section.or("force_interval", default.force_interval, some_time);
        let value_bytes = section.or("value_bytes", default.value_bytes, |value| {
            value.size(1024..=16 << 20)
        });
        let wild_names = section.or("wild_names", default.wild_names, |value| {
            value.integer(1..=100_000)
        });
        keeping = common?;
        Ok(Secrets {
            miss_ttl: miss_ttl?,
            force_interval: force_interval?,
            value_bytes: value_bytes?,
            wild_names: wild_names?,
            ..default
        })
    });
    let mut mappings = Vec::new();
    let named = root.sections("secret", |section| {
        entry(section, folder, &keeping, names, &mut mappings)
    });
    let named = named?.into_iter().flatten().collect();
    Ok(Secrets {
        named,
        mappings,
        ..all?
    })
}

fn some_time(value: &Value<'_>) -> Read<Duration> {
    value.duration(Duration::from_millis(1)..=Span::from_days(36_525).0)
}

fn keeping_of(section: &Section<'_>, default: &Keeping) -> Read<Keeping> {
    const LONGEST: Duration = Span::from_days(36_525).0;

    let refresh = section.or("refresh", default.refresh, |value| {
        value.duration(Duration::from_millis(100)..=LONGEST)
    });
    let previous_ttl = section.or("previous_ttl", default.previous_ttl, |value| {
        value.duration(Duration::ZERO..=LONGEST)
    });
    let stale_if_error = section.or("stale_if_error", default.stale_if_error, |value| {
        value.duration(Duration::ZERO..=LONGEST)
    });
    let rotate_after = section.maybe("rotate_after", |value| {
        value.duration(Duration::from_secs(1)..=LONGEST)
    });
    let revoke = section.or("revoke", default.revoke, Value::boolean);
    Ok(Keeping {
        refresh: refresh?,
        previous_ttl: previous_ttl?,
        stale_if_error: stale_if_error?,
        rotate_after: rotate_after?.or(default.rotate_after),
        revoke: revoke?,
    })
}

/// A secret, or nothing where the entry is a mapping.
fn entry(
    section: &Section<'_>,
    folder: &Path,
    default: &Keeping,
    names: &mut Vec<Named>,
    mappings: &mut Vec<SecretMapping>,
) -> Read<Option<Secret>> {
    let name = section
        .required("name")
        .and_then(|value| new_name(&value, names));
    let keeping = keeping_of(section, default);
    let is_wild = name.as_ref().is_ok_and(NamePattern::is_wild);
    let source = section
        .required("source")
        .and_then(|value| source(&value, is_wild));
    if is_wild {
        let allow = section.required("allow").and_then(|value| {
            let allow: Vec<NamePattern> = value.list(|item| item.parsed())?;
            if allow.is_empty() {
                Err(value.problem("allows nothing"))
            } else {
                Ok(allow)
            }
        });
        let mapping = SecretMapping {
            name: name?,
            source: source?,
            folder: folder.to_owned(),
            allow: allow?,
            keeping: keeping?,
        };
        mappings.push(mapping);
        return Ok(None);
    }
    let required = section.or("required", false, Value::boolean);
    let (name, source) = (name?.to_string(), source?);
    let malformed = |why: Malformed| section.problem(&why.to_string());
    let source: SecretSource = source.parse().map_err(malformed)?;
    Ok(Some(Secret {
        name: name.parse().map_err(malformed)?,
        source: source.anchored(folder),
        required: required?,
        keeping: keeping?,
    }))
}

fn new_name(value: &Value<'_>, names: &mut Vec<Named>) -> Read<NamePattern> {
    let pattern: NamePattern = value.parsed()?;
    if let Some((_, line)) = names.iter().find(|(name, _)| *name == pattern) {
        return Err(value.problem(format_args!(
            "the secret {pattern} is on line {line} already"
        )));
    }
    names.push((pattern.clone(), value.line()));
    Ok(pattern)
}

/// A source's text, valid; with one `*` where the name has one.
fn source(value: &Value<'_>, is_wild: bool) -> Read<String> {
    let text = value.some_text()?;
    match (text.matches('*').count(), is_wild) {
        (1, true) | (0, false) => {}
        (_, true) => {
            return Err(
                value.problem("needs one `*`, which becomes what the one in the name stands for")
            );
        }
        (_, false) => return Err(value.problem("has a `*`, and the name has none")),
    }
    match text.replace('*', "x").parse::<SecretSource>() {
        Ok(_) => Ok(text.to_owned()),
        Err(why) => Err(value.problem(why)),
    }
}

/// The secrets that a rule names: patterns, each of which covers something that is configured.
pub(super) fn known_secret(value: &Value<'_>, names: &[Named]) -> Read<NamePattern> {
    let pattern: NamePattern = value.parsed()?;
    let text = pattern.to_string();
    let is_known = names.iter().any(|(name, _)| {
        // Each as if it were a name: a `*` may stand under a wider one, either way round.
        *name == pattern
            || name.covers(&text.replace('*', "x"))
            || pattern.covers(&name.to_string().replace('*', "x"))
    });
    if is_known {
        Ok(pattern)
    } else {
        Err(value.absence(format_args!("there is no secret {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_come_back_as_they_were_written() {
        for text in [
            "file:/etc/secrets/a",
            "vault-kv:secret/orders/db",
            "vault-lease:database/creds/orders",
            "aws-sm:orders/db",
            "aws-sm:arn:aws:secretsmanager:eu-west-1:111122223333:secret:orders-AbCdEf",
            "aws-ssm:/orders/db",
            "azure-kv:https://orders.vault.azure.net/secrets/db",
        ] {
            assert_eq!(text.parse::<SecretSource>().expect(text).to_string(), text);
        }
        for malformed in [
            "",
            "orders",
            "file:",
            "vault-kv:secret",
            "vault-kv:secret/../sys/seal",
            "vault-lease:database",
            "aws-ssm:/orders/db:3",
            "azure-kv:https://orders.vault.azure.net/secrets/db/0123",
            "azure-kv:https://u@a/secrets/db",
            "s3://a/b",
            "file:/a\n",
        ] {
            malformed.parse::<SecretSource>().expect_err(malformed);
        }
    }

    #[test]
    fn a_star_stands_for_something_and_once() {
        let pattern: NamePattern = "team-*.db".parse().expect("pattern");
        assert_eq!(pattern.matched("team-a.db"), Some("a"));
        assert_eq!(pattern.matched("team-.db"), None);
        assert_eq!(pattern.matched("team-a"), None);
        assert!("a".parse::<NamePattern>().expect("name").covers("a"));
        assert!("*".parse::<NamePattern>().expect("all").covers("a"));
        for malformed in ["", "a*b*", "A*", "-*"] {
            malformed.parse::<NamePattern>().expect_err(malformed);
        }
    }

    #[test]
    fn a_mapping_gives_what_its_list_allows_and_leads_nowhere_else() {
        let patterns = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.parse().expect("pattern"))
                .collect()
        };
        let mapping = SecretMapping {
            name: "team-*".parse().expect("pattern"),
            source: "file:secrets/*".into(),
            folder: "/etc".into(),
            allow: patterns(&["team-a", "team-b-*", "team-.*"]),
            keeping: Keeping::default(),
        };
        let source = |name: &str| mapping.secret(name).map(|secret| secret.source.to_string());
        assert_eq!(source("team-a").as_deref(), Some("file:/etc/secrets/a"));
        assert_eq!(source("team-b-x").as_deref(), Some("file:/etc/secrets/b-x"));
        for refused in ["team-c", "team-..", "team-..data", "team-", "a"] {
            assert_eq!(source(refused), None, "{refused}");
        }
    }
}
