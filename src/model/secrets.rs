//! Where a secret comes from, and patterns of names.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    names::{Malformed, check_name},
    uris::is_path_segment,
};

/// A name, or several: one `*` stands for any characters, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    prefix: String,
    /// What follows the `*`; none of a plain name.
    suffix: Option<String>,
}

impl NamePattern {
    /// What the `*` stands for in `name`; nothing for the plain name itself.
    pub fn matched<'n>(&self, name: &'n str) -> Option<&'n str> {
        let rest = name.strip_prefix(&self.prefix)?;
        match &self.suffix {
            None => rest.is_empty().then_some(rest),
            Some(suffix) => rest
                .strip_suffix(suffix.as_str())
                .filter(|matched| !matched.is_empty()),
        }
    }

    /// Whether it covers `name`.
    pub fn covers(&self, name: &str) -> bool {
        self.matched(name).is_some()
    }

    /// Whether there is a `*`.
    pub fn is_wild(&self) -> bool {
        self.suffix.is_some()
    }
}

impl FromStr for NamePattern {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        // With one `*`, some character stands in its place, and the whole has to be a name.
        check_name(&text.replacen('*', "x", 1))?;
        Ok(match text.split_once('*') {
            None => Self {
                prefix: text.into(),
                suffix: None,
            },
            Some((prefix, suffix)) => Self {
                prefix: prefix.into(),
                suffix: Some(suffix.into()),
            },
        })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.suffix {
            None => f.write_str(&self.prefix),
            Some(suffix) => write!(f, "{}*{suffix}", self.prefix),
        }
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretSource {
    /// A file, or a folder whose files are the members of one JSON object: `file:PATH`.
    File(PathBuf),
    /// A secret of Vault's key-value engine, of either version: `vault-kv:MOUNT/PATH`.
    VaultKv {
        /// The first part of the path. The engine is mounted there, or deeper, which Vault tells.
        mount: String,
        /// The rest.
        path: String,
    },
    /// Credentials that Vault makes anew for every lease: `vault-lease:MOUNT/creds/ROLE`.
    VaultLease(String),
    /// A secret of AWS Secrets Manager: `aws-sm:NAME`, or its ARN.
    AwsSm(String),
    /// A parameter of AWS Systems Manager: `aws-ssm:NAME`, or its ARN.
    AwsSsm(String),
    /// A secret of Azure Key Vault: `azure-kv:https://VAULT/secrets/NAME`.
    AzureKv {
        /// The vault's URL.
        vault: String,
        /// The secret.
        name: String,
    },
}

const SOURCES: &str = "file:, vault-kv:, vault-lease:, aws-sm:, aws-ssm: and azure-kv:";

impl FromStr for SecretSource {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = |how: &str| Err(Malformed::new(format!("write {how}")));
        let Some((scheme, rest)) = text
            .split_once(':')
            .filter(|_| !text.contains(char::is_control))
        else {
            return Err(Malformed::new(format!(
                "a source begins with one of {SOURCES}"
            )));
        };
        match scheme {
            "file" if !rest.is_empty() => Ok(Self::File(rest.into())),
            "file" => malformed("file:PATH"),
            "vault-kv" => match rest.split_once('/') {
                Some((mount, path)) if rest.split('/').all(is_path_segment) => Ok(Self::VaultKv {
                    mount: mount.to_owned(),
                    path: path.to_owned(),
                }),
                _ => malformed("vault-kv:MOUNT/PATH, of letters, digits, `.`, `_` and `-`"),
            },
            "vault-lease" if rest.contains('/') && rest.split('/').all(is_path_segment) => {
                Ok(Self::VaultLease(rest.to_owned()))
            }
            "vault-lease" => {
                malformed("vault-lease:MOUNT/creds/ROLE, of letters, digits, `.`, `_` and `-`")
            }
            "aws-sm" if !rest.is_empty() => Ok(Self::AwsSm(rest.to_owned())),
            "aws-sm" => malformed("aws-sm:NAME"),
            "aws-ssm" if !rest.is_empty() && (rest.starts_with("arn:") || !rest.contains(':')) => {
                Ok(Self::AwsSsm(rest.to_owned()))
            }
            "aws-ssm" => malformed("aws-ssm:NAME, without a version or a label"),
            "azure-kv" => match azure(rest) {
                Some((vault, name)) => Ok(Self::AzureKv {
                    vault: vault.to_owned(),
                    name: name.to_owned(),
                }),
                None => malformed("azure-kv:https://VAULT/secrets/NAME, without a version"),
            },
            _ => Err(Malformed::new(format!(
                "`{scheme}:` is not a source of secrets; known: {SOURCES}"
            ))),
        }
    }
}

/// The vault and the secret's name in `https://VAULT/secrets/NAME`.
fn azure(rest: &str) -> Option<(&str, &str)> {
    let (vault, name) = rest.split_once("/secrets/")?;
    let host = vault
        .strip_prefix("https://")
        .or_else(|| vault.strip_prefix("http://"))?;
    let is_host = !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '[' | ']'));
    let is_name = !name.is_empty()
        && name.len() <= 127
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    (is_host && is_name).then_some((vault, name))
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::VaultKv { mount, path } => write!(f, "vault-kv:{mount}/{path}"),
            Self::VaultLease(path) => write!(f, "vault-lease:{path}"),
            Self::AwsSm(name) => write!(f, "aws-sm:{name}"),
            Self::AwsSsm(name) => write!(f, "aws-ssm:{name}"),
            Self::AzureKv { vault, name } => write!(f, "azure-kv:{vault}/secrets/{name}"),
        }
    }
}

impl SecretSource {
    /// The part before the first colon, which names the provider.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::VaultKv { .. } => "vault-kv",
            Self::VaultLease(_) => "vault-lease",
            Self::AwsSm(_) => "aws-sm",
            Self::AwsSsm(_) => "aws-ssm",
            Self::AzureKv { .. } => "azure-kv",
        }
    }

    /// Resolves a relative path against `folder`.
    pub fn anchored(self, folder: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(folder.join(path)),
            elsewhere => elsewhere,
        }
    }
}
