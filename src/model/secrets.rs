//! Sources of secrets, and patterns of names.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::{
    names::{Malformed, check_name},
    uris::{VAULT_PATH, is_vault_path},
};

/// A name, or a pattern with one `*`, which matches one or more characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    prefix: String,
    /// What follows the `*`; `None` for a plain name.
    suffix: Option<String>,
}

impl NamePattern {
    /// Returns what the `*` matches in `name`. For a plain name, that is nothing (`""`).
    pub fn matched<'n>(&self, name: &'n str) -> Option<&'n str> {
        let rest = name.strip_prefix(&self.prefix)?;
        match &self.suffix {
            None => rest.is_empty().then_some(rest),
            Some(suffix) => rest
                .strip_suffix(suffix.as_str())
                .filter(|matched| !matched.is_empty()),
        }
    }

    /// Returns whether it matches `name`.
    pub fn covers(&self, name: &str) -> bool {
        self.matched(name).is_some()
    }

    /// Returns whether it contains a `*`.
    pub fn is_wildcard(&self) -> bool {
        self.suffix.is_some()
    }
}

impl FromStr for NamePattern {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        // A pattern is valid if it is a name once a character replaces the `*`.
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

/// Where a secret is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretSource {
    /// A file, or a folder whose files become the members of a JSON object: `file:PATH`.
    File(PathBuf),
    /// A secret in Vault's key-value engine, version 1 or 2: `vault-kv:MOUNT/PATH`.
    VaultKv {
        /// The path's first segment. Vault tells whether the engine is mounted there or deeper.
        mount: String,
        /// The rest of the path.
        path: String,
    },
    /// Dynamic credentials, which Vault creates for every lease: `vault-lease:MOUNT/creds/ROLE`.
    VaultLease(String),
    /// A secret in AWS Secrets Manager: `aws-sm:NAME`, or its ARN.
    AwsSm(String),
    /// A parameter in AWS Systems Manager: `aws-ssm:NAME`, or its ARN.
    AwsSsm(String),
    /// A secret in Azure Key Vault: `azure-kv:https://VAULT/secrets/NAME`.
    AzureKv {
        /// The vault's URL.
        vault: String,
        /// The secret's name.
        name: String,
    },
}

const SOURCES: &str = "file:, vault-kv:, vault-lease:, aws-sm:, aws-ssm:, azure-kv:";

impl FromStr for SecretSource {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = |how: &str| Err(Malformed::new(format!("expected {how}")));
        let Some((scheme, rest)) = text
            .split_once(':')
            .filter(|_| !text.contains(char::is_control))
        else {
            return Err(Malformed::new(format!(
                "a secret source begins with one of {SOURCES}"
            )));
        };
        match scheme {
            "file" if !rest.is_empty() => Ok(Self::File(rest.into())),
            "file" => malformed("file:PATH"),
            "vault-kv" => match rest.split_once('/') {
                Some((mount, path)) if is_vault_path(rest) => Ok(Self::VaultKv {
                    mount: mount.to_owned(),
                    path: path.to_owned(),
                }),
                _ => malformed(&format!("vault-kv:MOUNT/PATH {VAULT_PATH}")),
            },
            "vault-lease" => match rest.split('/').collect::<Vec<_>>()[..] {
                [_, "issue" | "sign" | "sign-verbatim", ..] => Err(Malformed::new(
                    "vault-lease: reads, and this path of Vault must be written, as those of PKI \
                     and SSH; have Vault Agent render it to a file, and use file:PATH",
                )),
                [_, _, ..] if is_vault_path(rest) => Ok(Self::VaultLease(rest.to_owned())),
                _ => malformed(&format!("vault-lease:MOUNT/creds/ROLE {VAULT_PATH}")),
            },
            "aws-sm" if !rest.is_empty() => Ok(Self::AwsSm(rest.to_owned())),
            "aws-sm" => malformed("aws-sm:NAME"),
            "aws-ssm" if !rest.is_empty() && (rest.starts_with("arn:") || !rest.contains(':')) => {
                Ok(Self::AwsSsm(rest.to_owned()))
            }
            "aws-ssm" => malformed("aws-ssm:NAME without a version or label"),
            "azure-kv" => match azure(rest) {
                Some((vault, name)) => Ok(Self::AzureKv {
                    vault: vault.to_owned(),
                    name: name.to_owned(),
                }),
                None => malformed("azure-kv:https://VAULT/secrets/NAME without a version"),
            },
            _ => Err(Malformed::new(format!(
                "unknown scheme `{scheme}:` of a secret source; expected one of {SOURCES}"
            ))),
        }
    }
}

/// Returns the vault and the secret's name in `https://VAULT/secrets/NAME`.
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
    /// Returns the part before the first colon, which names the provider.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_read_as_they_are_written() {
        for text in [
            "file:/etc/secrets/a",
            "vault-kv:secret/orders/db",
            "vault-lease:database/creds/orders",
            "vault-lease:database/static-creds/my app",
            "vault-kv:secret/user@example.com",
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
            "vault-lease:pki/issue/web",
            "vault-kv:secret/orders/db/",
            "vault-kv:/secret/orders/db",
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
    fn a_pattern_has_one_wildcard_that_matches_at_least_one_character() {
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
}
