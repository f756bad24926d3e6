//! A signer's file: the hub whose orders it takes, the keyrings that it changes, and what it allows
//! in orders for them.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::{
    Audit, Backends, FleetFile, LoadError, Log, Problems,
    audit::audit,
    backends::backends,
    fleet::members,
    keyring::{KeyringNames, keks, location, new_name},
    log::log,
    parse::{folder, read},
    reader::{Context, Parsed, Section, Value},
};
use crate::model::{KekScope, KeyringName, Location, SignerKey};

/// How many versions may be created in a day. A manifest remembers as many ended rollouts.
const VERSIONS_PER_DAY: u32 = 16;
const DEFAULT_VERSIONS_PER_DAY: u32 = 4;

/// The settings of a signer.
#[derive(Debug, Clone)]
pub struct SignerFile {
    /// The hub, and sidecars that are asked besides those that have joined it.
    pub fleet: FleetFile,
    /// The keyrings.
    pub keyrings: Vec<SignerKeyring>,
    /// The folder where it remembers manifests, orders and the rollouts that it runs.
    pub state_dir: PathBuf,
    /// How KEKs and locations are reached.
    pub backends: Backends,
    /// Where rollouts are recorded.
    pub audit: Option<Audit>,
    /// What is logged.
    pub log: Log,
}

/// A keyring that a signer changes.
#[derive(Debug, Clone)]
pub struct SignerKeyring {
    /// The name, as in the manifest.
    pub name: KeyringName,
    /// Where the manifest is stored.
    pub location: Location,
    /// The KEKs that may wrap and unwrap its versions.
    pub keks: KekScope,
    /// The signers whose manifests may be succeeded, besides the own key.
    pub trusted_signers: Vec<SignerKey>,
    /// The Ed25519 key that signs changes (PKCS#8 PEM).
    pub sign_key_file: Option<PathBuf>,
    /// The digest of the manifest that is trusted the first time, in hexadecimal digits.
    pub first_time: Option<String>,
    /// The keys whose orders are taken.
    pub requesters: Vec<SignerKey>,
    /// How many versions may be created in any 24 hours.
    pub new_versions_per_day: u32,
    /// The approvals that disabling and destroying by order need.
    pub approvals: Option<SignerApprovals>,
    /// The only backup that an order may ask for.
    pub backup: Option<SignerBackup>,
}

/// How many of whom must approve.
#[derive(Debug, Clone)]
pub struct SignerApprovals {
    /// How many.
    pub required: u32,
    /// Of whom.
    pub approvers: Vec<SignerKey>,
}

/// A backup, on the signer's machine.
#[derive(Debug, Clone)]
pub struct SignerBackup {
    /// The folder.
    pub folder: PathBuf,
    /// A file of age recipients, one a line.
    pub recipients_file: PathBuf,
    /// A file of age identities, of which one can decrypt the backup.
    pub identity_file: PathBuf,
}

/// Reads and parses a signer's file; see [`parse_signer`].
///
/// # Errors
/// Fails if the file can't be read or is invalid.
pub fn load_signer(file: &Path) -> Result<SignerFile, LoadError> {
    Ok(parse_signer(file, &read(file)?)?)
}

/// Parses the text of a signer's file. Relative paths are resolved against the folder of `file`.
///
/// # Errors
/// Returns all problems at once.
pub fn parse_signer(file: &Path, text: &str) -> Result<SignerFile, Problems> {
    let (table, syntax_errors) = DeTable::parse_recoverable(text);
    let context = Context::new(&folder(file), text, &syntax_errors);
    let settings = Section::file(&context, table.get_ref(), signer);
    match (settings, context.into_problems()) {
        (Ok(settings), items) if items.is_empty() => Ok(settings),
        (_, items) => Err(Problems {
            file: file.to_owned(),
            items,
        }),
    }
}

fn signer(root: &Section<'_>) -> Parsed<SignerFile> {
    let state_dir = root
        .required("state_dir")
        .and_then(|value| Value::path(&value));
    let mut names = Vec::new();
    let keyrings = root.sections("keyring", |section| keyring(section, &mut names));
    if !root.has("keyring") {
        root.missing("keyring", "at least one [[keyring]] is required");
    }
    let fleet = members(root);
    if !root.has("hub") {
        root.missing("hub", "is required: a signer takes its orders from a hub");
    }
    let backends = backends(root);
    let audit = root.section("audit", audit);
    let log = root.section("log", log);
    Ok(SignerFile {
        fleet: fleet?,
        keyrings: keyrings?,
        state_dir: state_dir?,
        backends: backends?,
        audit: audit?,
        log: log?,
    })
}

fn keyring<'t>(section: &Section<'t>, names: &mut KeyringNames<'t>) -> Parsed<SignerKeyring> {
    let name = section
        .required("name")
        .and_then(|value| new_name(&value, names));
    let location = section
        .required("location")
        .and_then(|value| location(section, &value));
    let keks = keks(section, true);
    let trusted_signers = section.or("trusted_signers", Vec::new(), |value| {
        value.list(|item| item.parsed())
    });
    let sign_key_file = section.maybe("sign_key_file", Value::path);
    let first_time = section.maybe("first_time", digest);
    let requesters = section.required("requesters").and_then(|value| {
        let keys = value.list(|item| item.parsed())?;
        if keys.is_empty() {
            return Err(value.problem("must list at least one key"));
        }
        Ok(keys)
    });
    let new_versions_per_day =
        section.or("new_versions_per_day", DEFAULT_VERSIONS_PER_DAY, |value| {
            value.integer(1..=VERSIONS_PER_DAY)
        });
    let approvals = section.maybe("approvals", |value| value.section(approvals));
    let backup = section.maybe("backup", |value| value.section(backup));
    Ok(SignerKeyring {
        name: name?,
        location: location?,
        keks: keks?,
        trusted_signers: trusted_signers?,
        sign_key_file: sign_key_file?,
        first_time: first_time?,
        requesters: requesters?,
        new_versions_per_day: new_versions_per_day?,
        approvals: approvals?,
        backup: backup?,
    })
}

fn digest(value: &Value<'_>) -> Parsed<String> {
    let text = value.string()?;
    let is_digest =
        text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if is_digest {
        return Ok(text);
    }
    Err(value.problem("expected the digest that `sidekey keyring status` shows: 64 hex digits"))
}

fn approvals(section: &Section<'_>) -> Parsed<SignerApprovals> {
    let approvers: Parsed<Vec<SignerKey>> = section.required("approvers").and_then(|value| {
        let keys: Vec<SignerKey> = value.list(|item| item.parsed())?;
        let is_twice = |(index, key): (usize, &SignerKey)| keys[..index].contains(key);
        if keys.iter().enumerate().any(is_twice) {
            return Err(value.problem("lists a key twice"));
        }
        Ok(keys)
    });
    let most = approvers.as_ref().map_or(u32::MAX, |keys| {
        u32::try_from(keys.len()).unwrap_or(u32::MAX).max(1)
    });
    let required = section
        .required("required")
        .and_then(|value| value.integer(1..=most));
    Ok(SignerApprovals {
        required: required?,
        approvers: approvers?,
    })
}

fn backup(section: &Section<'_>) -> Parsed<SignerBackup> {
    let path = |key| section.required(key).and_then(|value| Value::path(&value));
    let (folder, recipients) = (path("folder"), path("recipients_file"));
    let identity = path("identity_file");
    Ok(SignerBackup {
        folder: folder?,
        recipients_file: recipients?,
        identity_file: identity?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/etc/sidekey/signer.toml";
    const KEY: &str = "ed25519:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn parse(text: &str) -> Result<SignerFile, String> {
        parse_signer(Path::new(FILE), text).map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_whole_file_is_read() {
        let signer = parse(&format!(
            r#"
            state_dir = "/var/lib/sidekey-signer"

            [hub]
            url = "https://hub.example.org:9470"
            token_file = "hub.token"

            [[keyring]]
            name = "orders"
            location = "orders.json"
            keks = ["local:kek"]
            sign_key_file = "signer.pem"
            requesters = ["{KEY}"]
            new_versions_per_day = 2
            [keyring.approvals]
            required = 1
            approvers = ["{KEY}"]
            [keyring.backup]
            folder = "/var/backups"
            recipients_file = "recipients"
            identity_file = "identity"

            [[keyring]]
            name = "payments"
            location = "s3://bucket/payments.json"
            keks = ["aws-kms:*"]
            requesters = ["{KEY}"]

            [[sidecar]]
            url = "http://10.1.2.4"
            "#
        ))
        .expect("valid");
        let hub = signer.fleet.hub.expect("a hub");
        assert_eq!(hub.token_file, Some("/etc/sidekey/hub.token".into()));
        assert_eq!(signer.fleet.sidecars.len(), 1);
        assert_eq!(signer.state_dir, Path::new("/var/lib/sidekey-signer"));
        let [orders, payments] = &signer.keyrings[..] else {
            panic!("two keyrings")
        };
        assert!(
            orders
                .keks
                .covers(&"local:/etc/sidekey/kek".parse().expect("a KEK"))
        );
        let signed = (&orders.sign_key_file, orders.new_versions_per_day);
        assert_eq!(signed, (&Some("/etc/sidekey/signer.pem".into()), 2));
        let backup = orders.backup.as_ref().expect("a backup");
        assert_eq!(backup.identity_file, Path::new("/etc/sidekey/identity"));
        assert_eq!(orders.approvals.as_ref().expect("a rule").required, 1);
        assert_eq!(payments.new_versions_per_day, DEFAULT_VERSIONS_PER_DAY);
    }

    #[test]
    fn every_problem_is_listed_with_its_line() {
        let text = format!(
            r#"[[keyring]]
name = "orders"
location = "orders.json"
requesters = []
new_versions_per_day = 17
first_time = "abc"
wave = "canary"
[keyring.approvals]
required = 2
approvers = ["{KEY}"]
[[keyring]]
name = "orders"
location = "b.json"
keks = ["local:*"]
requesters = ["ed25519:AQ=="]
[keyring.backup]
folder = "backups"
"#
        );
        let problems = parse(&text).expect_err("invalid");
        let expected = [
            "1: keyring[0].keks: is required",
            "4: keyring[0].requesters: must list at least one key",
            "5: keyring[0].new_versions_per_day: must be between 1 and 16, found 17",
            "6: keyring[0].first_time: expected the digest",
            "7: keyring[0].wave: unknown key",
            "9: keyring[0].approvals.required: must be between 1 and 1, found 2",
            "12: keyring[1].name: duplicate keyring \"orders\"",
            "15: keyring[1].requesters[0]: invalid value",
            "16: keyring[1].backup.recipients_file: is required",
            "16: keyring[1].backup.identity_file: is required",
        ];
        for line in expected {
            assert!(
                problems.contains(&format!("{FILE}:{line}")),
                "{line}\n{problems}"
            );
        }
        for missing in ["state_dir: is required", "hub: is required"] {
            assert!(problems.contains(missing), "{missing}\n{problems}");
        }
    }
}
