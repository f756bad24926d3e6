//! The policy of a keyring, and what versions keep of a former one.
//!
//! A change of the policy never shortens a wait that has begun: each version that waits keeps the
//! longer period, and the stricter class, until it is destroyed or the policy demands as much.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Document, Manifest, Refusal, State, Version,
    activation::ends,
    lifecycle::{after, successor},
    manifest::present,
};
use crate::model::{Malformed, Span};

/// A keyring's class, periods and waiting times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// How often a new version is due.
    pub rotate_every: Span,
    /// How long a version must be unused before it is disabled.
    pub quiet_period: Span,
    /// How long a sidecar that can't confirm its manifest keeps encrypting.
    pub encrypt_lease: Span,
    /// How long a version must be disabled before it is destroyed.
    pub destroy_after: Span,
    /// How long a superseded version may decrypt before that is reported. Nothing is refused.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub decrypt_until: Option<Span>,
    /// The window after a version's creation over which sidecars unwrap it, each at a point of its
    /// own; `None` for all at once.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub spread: Option<Span>,
    /// What shows that a version is no longer needed.
    #[serde(default)]
    pub class: Class,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rotate_every: Span::from_days(90),
            quiet_period: Span::from_days(30),
            encrypt_lease: Span::from_days(30),
            destroy_after: Span::from_days(30),
            decrypt_until: None,
            spread: None,
            class: Class::Live,
        }
    }
}

/// What shows that a version is no longer needed; the strictest last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Ciphertexts are read while they are needed: a version without use is one without need.
    #[default]
    Live,
    /// Ciphertexts may lie unread for years.
    Archive,
    /// Ciphertexts are those of a Kubernetes cluster, which reads some of them only at a restart.
    Kms,
}

impl Class {
    /// Returns what shows that a version isn't needed, if not that no sidecar uses it.
    pub(super) fn demands(self) -> Option<&'static str> {
        match self {
            Self::Live => None,
            Self::Archive => Some("a scan of every store that finds no ciphertext of it"),
            Self::Kms => Some("a storage migration, and a scan of etcd that finds none of it"),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Archive => "archive",
            Self::Kms => "kms",
        })
    }
}

impl std::str::FromStr for Class {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        [Self::Live, Self::Archive, Self::Kms]
            .into_iter()
            .find(|class| class.to_string() == text)
            .ok_or_else(|| Malformed::new("expected `live`, `archive` or `kms`"))
    }
}

/// What a version keeps of former policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// A longer quiet period.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub quiet_period: Option<Span>,
    /// A longer encrypt lease, which sidecars may hold that haven't seen the change.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub encrypt_lease: Option<Span>,
    /// A longer time between being disabled and being destroyed.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub destroy_after: Option<Span>,
    /// A stricter class.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub class: Option<Class>,
}

impl Kept {
    /// Returns whether the version keeps nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether all that is kept exceeds the policy.
    pub(super) fn exceeds(&self, policy: &Policy) -> bool {
        let exceeds = |kept: Option<Span>, present| kept.is_none_or(|kept| kept > present);
        exceeds(self.quiet_period, policy.quiet_period)
            && exceeds(self.encrypt_lease, policy.encrypt_lease)
            && exceeds(self.destroy_after, policy.destroy_after)
            && self.class.is_none_or(|class| class > policy.class)
    }

    /// Returns the longest of both, as two branches keep them.
    pub(super) fn or_longer(self, other: Self) -> Self {
        Self {
            quiet_period: self.quiet_period.max(other.quiet_period),
            encrypt_lease: self.encrypt_lease.max(other.encrypt_lease),
            destroy_after: self.destroy_after.max(other.destroy_after),
            class: self.class.max(other.class),
        }
    }

    /// Returns what a destroyed version keeps: the lease, which trimming waits for.
    pub(super) fn once_destroyed(self) -> Self {
        Self {
            encrypt_lease: self.encrypt_lease,
            ..Self::default()
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let periods = [
            ("quiet_period", self.quiet_period),
            ("encrypt_lease", self.encrypt_lease),
            ("destroy_after", self.destroy_after),
        ];
        let periods = periods
            .into_iter()
            .filter_map(|(name, period)| Some(format!("{name} {}", period?)));
        let class = self.class.map(|class| format!("class {class}"));
        f.write_str(&periods.chain(class).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rotate_every {}, quiet_period {}, encrypt_lease {}, destroy_after {}",
            self.rotate_every, self.quiet_period, self.encrypt_lease, self.destroy_after
        )?;
        if let Some(term) = self.decrypt_until {
            write!(f, ", decrypt_until {term}")?;
        }
        if let Some(window) = self.spread {
            write!(f, ", spread {window}")?;
        }
        write!(f, ", class {}", self.class)
    }
}

impl Policy {
    /// Returns how long `version` must be unused before it is disabled.
    pub fn quiet_period_of(&self, version: &Version) -> Span {
        longer(self.quiet_period, version.kept.quiet_period)
    }

    /// Returns how long a sidecar that can't confirm its manifest may encrypt with `version`.
    pub fn encrypt_lease_of(&self, version: &Version) -> Span {
        longer(self.encrypt_lease, version.kept.encrypt_lease)
    }

    /// Returns how long `version` must be disabled before it is destroyed.
    pub fn destroy_after_of(&self, version: &Version) -> Span {
        longer(self.destroy_after, version.kept.destroy_after)
    }

    /// Returns what shows that `version` is no longer needed.
    pub fn class_of(&self, version: &Version) -> Class {
        longer(self.class, version.kept.class)
    }
}

fn longer<T: Ord>(present: T, kept: Option<T>) -> T {
    match kept {
        Some(kept) => kept.max(present),
        None => present,
    }
}

/// Changes the policy. Versions that wait keep what was longer or stricter.
///
/// # Errors
/// [`Refusal::PolicyUnchanged`]
pub fn set_policy(current: &Document, policy: Policy, now: Timestamp) -> Result<Manifest, Refusal> {
    let former = &current.manifest().policy;
    if policy == *former {
        return Err(Refusal::PolicyUnchanged);
    }
    let mut next = successor(current, now);
    next.policy = policy;
    keep_waits(&mut next, former);
    Ok(next)
}

/// Lets every version of `next` keep what is longer or stricter in `former`, as far as it waits:
///
/// - the lease, once it was activated: a sidecar that didn't see the change may hold the former
///   lease and encrypt with it, whether it is superseded yet or not;
/// - the quiet period and the class, unless it is a primary that nothing supersedes;
/// - the time until it is destroyed, while it is disabled.
///
/// Decisions count as soon as they are made, so that no clock matters.
pub(super) fn keep_waits(next: &mut Manifest, former: &Policy) {
    let ends = ends(&next.activations);
    let policy = &next.policy;
    for version in &mut next.versions {
        let end = ends.get(&version.version);
        let lives = version.state != State::Destroyed;
        let was_activated = end.is_some() || !lives;
        let is_superseded = lives && !matches!(end, Some(None));
        let is_disabled = version.state == State::Disabled;
        let before = version.kept;
        let kept = Kept {
            quiet_period: exceeding(
                before.quiet_period,
                is_superseded.then_some(former.quiet_period),
                policy.quiet_period,
            ),
            encrypt_lease: exceeding(
                before.encrypt_lease,
                was_activated.then_some(former.encrypt_lease),
                policy.encrypt_lease,
            ),
            destroy_after: exceeding(
                before.destroy_after,
                is_disabled.then_some(former.destroy_after),
                policy.destroy_after,
            ),
            class: exceeding(
                before.class,
                is_superseded.then_some(former.class),
                policy.class,
            ),
        };
        version.kept = if lives { kept } else { kept.once_destroyed() };
    }
}

/// The longest of what was kept and what is added to it, if that exceeds what the policy says now.
fn exceeding<T: Ord>(before: Option<T>, added: Option<T>, present: T) -> Option<T> {
    before.max(added).filter(|longest| *longest > present)
}

/// Returns the superseded versions that still decrypt although `policy.decrypt_until` is over, each
/// with the time at which it ended.
pub fn overdue(manifest: &Manifest, now: Timestamp) -> Vec<(u32, Timestamp)> {
    let Some(term) = manifest.policy.decrypt_until else {
        return Vec::new();
    };
    let decrypts = |version: u32| {
        manifest
            .version(version)
            .is_some_and(|version| version.state == State::Enabled)
    };
    ends(&manifest.activations)
        .into_iter()
        .filter_map(|(version, end)| Some((version, after(end?, term))))
        .filter(|(version, due)| *due <= now && decrypts(*version))
        .collect()
}
