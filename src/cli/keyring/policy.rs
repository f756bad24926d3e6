use std::str::FromStr;

use clap::{ArgGroup, Args};
use serde_json::{Map, Value};

use crate::{
    cli::{
        output::{CliError, Format, note},
        record::Completed,
        target::{Target, changed},
    },
    keyring::{self, Class, Policy},
    model::Span,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct ChangePolicy {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    change: Change,
}

#[derive(Debug, Clone, Copy, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args([
    "rotate_every", "quiet_period", "encrypt_lease", "destroy_after", "decrypt_until", "spread",
    "class",
])))]
struct Change {
    /// Interval after which a new version is due.
    #[arg(long, value_name = "DURATION", value_parser = Span::from_str)]
    rotate_every: Option<Span>,
    /// Time without use by any sidecar before a version may be disabled.
    #[arg(long, value_name = "DURATION", value_parser = Span::from_str)]
    quiet_period: Option<Span>,
    /// Time that a sidecar keeps encrypting without confirming its manifest.
    #[arg(long, value_name = "DURATION", value_parser = Span::from_str)]
    encrypt_lease: Option<Span>,
    /// Time that a version must stay disabled before it may be destroyed.
    #[arg(long, value_name = "DURATION", value_parser = Span::from_str)]
    destroy_after: Option<Span>,
    /// Time that a superseded version may decrypt before that is reported; `never` for no limit.
    #[arg(long, value_name = "DURATION|never", value_parser = Term::from_str)]
    decrypt_until: Option<Term>,
    /// Window after a version's creation over which sidecars unwrap it, each at a point of its own;
    /// `never` for all at once.
    #[arg(long, value_name = "DURATION|never", value_parser = Term::from_str)]
    spread: Option<Term>,
    /// What shows that a version is no longer needed: `live`, `archive` or `kms`.
    #[arg(long, value_name = "CLASS", value_parser = Class::from_str)]
    class: Option<Class>,
}

/// A period that may be left out.
#[derive(Debug, Clone, Copy)]
struct Term(Option<Span>);

impl FromStr for Term {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let span = text
            .parse()
            .map_err(|error| format!("{error}, or `never`"))?;
        Ok(Self(Some(span)))
    }
}

impl Change {
    fn applied_to(self, policy: &Policy) -> Policy {
        Policy {
            rotate_every: self.rotate_every.unwrap_or(policy.rotate_every),
            quiet_period: self.quiet_period.unwrap_or(policy.quiet_period),
            encrypt_lease: self.encrypt_lease.unwrap_or(policy.encrypt_lease),
            destroy_after: self.destroy_after.unwrap_or(policy.destroy_after),
            decrypt_until: match self.decrypt_until {
                Some(Term(term)) => term,
                None => policy.decrypt_until,
            },
            spread: match self.spread {
                Some(Term(window)) => window,
                None => policy.spread,
            },
            class: self.class.unwrap_or(policy.class),
        }
    }

    fn record(self) -> Map<String, Value> {
        let text = |span: Span| span.to_string();
        let term = |Term(term): Term| term.map_or("never".into(), text);
        let members = [
            ("rotate_every", self.rotate_every.map(text)),
            ("quiet_period", self.quiet_period.map(text)),
            ("encrypt_lease", self.encrypt_lease.map(text)),
            ("destroy_after", self.destroy_after.map(text)),
            ("decrypt_until", self.decrypt_until.map(term)),
            ("spread", self.spread.map(term)),
            ("class", self.class.map(|class| class.to_string())),
        ];
        members
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
            .collect()
    }
}

impl ChangePolicy {
    /// Returns what is asked for, for the audit log.
    pub(super) fn record(&self) -> Map<String, Value> {
        self.change.record()
    }

    pub(super) async fn run(self, format: Format) -> Result<Completed, CliError> {
        let admin = self.target.admin()?;
        let document = admin
            .change(|current, now| {
                let policy = self.change.applied_to(&current.manifest().policy);
                keyring::set_policy(current, policy, now)
            })
            .await?;
        let manifest = document.manifest();
        for version in manifest
            .versions
            .iter()
            .filter(|version| !version.kept.is_empty())
        {
            note(format_args!(
                "{}: version {} keeps {} of a former policy",
                manifest.name, version.version, version.kept
            ));
        }
        let message = format!("policy changed to {}", manifest.policy);
        changed(format, &admin, &document, None, &message)
    }
}
