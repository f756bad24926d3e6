//! `[[keyring]]`: the keyrings to serve.

use super::reader::{Parsed, Section, Value};
use crate::model::{Anchor, KekPattern, KekScope, KeyringName, Location, SignerKey, Wave};

/// A keyring to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct Keyring {
    /// The name, as in the manifest.
    pub name: KeyringName,
    /// Where the manifest is stored.
    pub location: Location,
    /// The KEKs that may unwrap the keyring's versions.
    pub keks: KekScope,
    /// What confirms that the manifest is current.
    pub confirm: Confirm,
    /// The lowest generation that a fresh start accepts.
    pub min_generation: u64,
    /// The signers of which one must have signed the manifest. Empty: no signature is required.
    pub trusted_signers: Vec<SignerKey>,
    /// A version that a start without a cached manifest trusts.
    pub anchor: Option<Anchor>,
    /// Lost versions whose destruction is accepted without a testament.
    pub accept_lost: Vec<u32>,
    /// The keyring's wave. Default: the sidecar's.
    pub wave: Option<Wave>,
}

/// What confirms a manifest for the encrypt lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// Reading the location.
    Read,
    /// The manifest's `updated_at`, because the location itself is only a copy.
    Stamp,
}

/// A name as it is written in the file, valid or not, and its line.
pub(super) type KeyringNames<'t> = Vec<(&'t str, usize)>;

pub(super) fn keyrings<'t>(root: &Section<'t>) -> (Parsed<Vec<Keyring>>, KeyringNames<'t>) {
    let mut names = Vec::new();
    let keyrings = root.sections("keyring", |section| keyring(section, &mut names));
    (keyrings, names)
}

fn keyring<'t>(section: &Section<'t>, names: &mut KeyringNames<'t>) -> Parsed<Keyring> {
    let name = section
        .required("name")
        .and_then(|value| new_name(&value, names));
    let location = section
        .required("location")
        .and_then(|value| location(section, &value));
    let confirm = section.or("confirm", Confirm::Read, |value| {
        value.choice(&[("read", Confirm::Read), ("stamp", Confirm::Stamp)])
    });
    let min_generation = section.or("min_generation", 0, |value| value.integer(0..=u64::MAX));
    let trusted_signers = section.or("trusted_signers", Vec::new(), |value| {
        value.list(|item| item.parsed())
    });
    let anchor = section.maybe("anchor", Value::parsed);
    let accept_lost = section.or("accept_lost", Vec::new(), |value| {
        value.list(|item| item.integer(1..=u32::MAX))
    });
    let needs_keks = trusted_signers.as_ref().is_ok_and(Vec::is_empty);
    let keks = keks(section, needs_keks);
    let wave = section.maybe("wave", Value::parsed);
    Ok(Keyring {
        name: name?,
        location: location?,
        keks: keks?,
        confirm: confirm?,
        min_generation: min_generation?,
        anchor: anchor?,
        accept_lost: accept_lost?,
        trusted_signers: trusted_signers?,
        wave: wave?,
    })
}

pub(super) fn new_name<'t>(value: &Value<'t>, names: &mut KeyringNames<'t>) -> Parsed<KeyringName> {
    let text = value.text()?;
    if let Some((_, line)) = names.iter().find(|(name, _)| *name == text) {
        return Err(value.problem(format_args!(
            "duplicate keyring {text:?}, already defined on line {line}"
        )));
    }
    names.push((text, value.line()));
    value.parsed()
}

pub(super) fn location(section: &Section<'_>, value: &Value<'_>) -> Parsed<Location> {
    match value.parsed_uri()? {
        Location::File(path) => Ok(Location::File(section.folder().join(path))),
        remote => Ok(remote),
    }
}

/// Without signers, only the KEKs vouch for a manifest's author, so they must be listed.
pub(super) fn keks(section: &Section<'_>, is_required: bool) -> Parsed<KekScope> {
    match section.optional("keks") {
        Some(value) => {
            let patterns = value.list(|item| {
                let pattern: KekPattern = item.parsed_uri()?;
                Ok(pattern.anchored(section.folder()))
            })?;
            if patterns.is_empty() {
                return Err(value.problem("must list at least one KEK"));
            }
            Ok(KekScope::Only(patterns))
        }
        None if is_required => Err(section.missing(
            "keks",
            "is required without trusted_signers; list the KEKs that may unwrap this keyring, \
             such as local:/etc/sidekey/kek or aws-kms:*",
        )),
        None => Ok(KekScope::Any),
    }
}
