//! `[[policy]]`: which callers may do what.

use super::{
    keyring::KeyringNames,
    reader::{Parsed, Section, Value},
    secrets::{SecretNames, known_secret},
};
use crate::model::{KeyringName, NamePattern, Operation};

/// Allows operations on keyrings and secrets to callers. Once there is a rule, anything that no
/// rule allows is denied.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The keyrings; `None` for all.
    pub keyrings: Option<Vec<KeyringName>>,
    /// The operations on those keyrings.
    pub operations: Vec<Operation>,
    /// The secrets that may be fetched.
    pub secrets: Vec<NamePattern>,
    /// Users that the rule applies to.
    pub uids: Vec<u32>,
    /// Groups that the rule applies to (the process's effective group).
    pub gids: Vec<u32>,
    /// Whether the rule applies to callers with the TCP listener's token.
    pub token: bool,
}

/// Matches every name.
const EVERY: &str = "*";

pub(super) fn rules(
    root: &Section<'_>,
    keyrings: &KeyringNames<'_>,
    secrets: &SecretNames,
    has_tcp: bool,
) -> Parsed<Vec<Rule>> {
    root.sections("policy", |section| {
        rule(section, keyrings, secrets, has_tcp)
    })
}

fn rule(
    section: &Section<'_>,
    keyring_names: &KeyringNames<'_>,
    secret_names: &SecretNames,
    has_tcp: bool,
) -> Parsed<Rule> {
    // A rule covers keyrings, secrets or both. For keyrings, both keys are required.
    let covers_keyrings =
        section.has("keyrings") || section.has("operations") || !section.has("secrets");
    let (keyrings, operations) = if covers_keyrings {
        let keyrings = section
            .required("keyrings")
            .and_then(|value| selection(&value, |item| known_keyring(item, keyring_names)));
        let operations = section
            .required("operations")
            .and_then(|value| selection(&value, operation));
        (keyrings, operations)
    } else {
        (Ok(Some(Vec::new())), Ok(Some(Vec::new())))
    };
    let secrets = section.or("secrets", Vec::new(), |value| {
        rule_secrets(value, secret_names)
    });
    let uids = section.or("uids", Vec::new(), |value| value.list(|item| item.uid()));
    let gids = section.or("gids", Vec::new(), |value| value.list(|item| item.gid()));
    let token = section.or("token", false, |value| token(value, has_tcp));
    if let (Ok(uids), Ok(gids), Ok(false)) = (&uids, &gids, &token)
        && uids.is_empty()
        && gids.is_empty()
    {
        return Err(section.problem("matches no caller; set uids, gids or token = true"));
    }
    Ok(Rule {
        keyrings: keyrings?,
        operations: operations?.unwrap_or_else(implied_operations),
        secrets: secrets?,
        uids: uids?,
        gids: gids?,
        token: token?,
    })
}

fn implied_operations() -> Vec<Operation> {
    Operation::ALL
        .into_iter()
        .filter(|operation| operation.is_implied())
        .collect()
}

/// Reads a list of at least one name. Returns `None` if it is, or contains, [`EVERY`].
fn selection<T>(
    value: &Value<'_>,
    mut read: impl FnMut(&Value<'_>) -> Parsed<T>,
) -> Parsed<Option<Vec<T>>> {
    if value.is(EVERY) {
        return Ok(None);
    }
    let items = nonempty_list(value, |item| {
        if item.is(EVERY) {
            Ok(None)
        } else {
            read(item).map(Some)
        }
    })?;
    Ok(items.into_iter().collect())
}

/// Reads the secrets of a rule. [`EVERY`] is a pattern.
fn rule_secrets(value: &Value<'_>, names: &SecretNames) -> Parsed<Vec<NamePattern>> {
    if value.is(EVERY) {
        return value.parsed().map(|every| vec![every]);
    }
    nonempty_list(value, |item| {
        if item.is(EVERY) {
            item.parsed()
        } else {
            known_secret(item, names)
        }
    })
}

fn nonempty_list<T>(
    value: &Value<'_>,
    mut read: impl FnMut(&Value<'_>) -> Parsed<T>,
) -> Parsed<Vec<T>> {
    if !value.is_array() {
        return Err(value.unexpected("an array or \"*\""));
    }
    let items = value.list(|item| read(&item))?;
    if items.is_empty() {
        return Err(value.problem("must not be empty; use \"*\" for all"));
    }
    Ok(items)
}

fn known_keyring(value: &Value<'_>, names: &KeyringNames<'_>) -> Parsed<KeyringName> {
    let text = value.text()?;
    if !names.iter().any(|(name, _)| *name == text) {
        return Err(value.missing(format_args!(
            "unknown keyring {text:?}; no [[keyring]] has this name"
        )));
    }
    value.parsed()
}

fn operation(value: &Value<'_>) -> Parsed<Operation> {
    value.choice(&Operation::ALL.map(|operation| (operation.as_str(), operation)))
}

fn token(value: &Value<'_>, has_tcp: bool) -> Parsed<bool> {
    match value.boolean()? {
        true if !has_tcp => {
            Err(value.missing("requires listen.tcp; only TCP callers present a token"))
        }
        token => Ok(token),
    }
}
