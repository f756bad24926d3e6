//! URIs of KEKs and manifests, and which KEKs may be used.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::names::{Malformed, text_type};

text_type!(
    /// A KEK's URI, such as `local:/etc/sidekey/kek`. The scheme selects the backend, which parses
    /// the rest.
    KekUri,
    check_kek_uri
);

/// Accepts any scheme. A wrap whose backend this build lacks can't be unwrapped, but the rest of
/// the manifest stays usable.
fn check_kek_uri(text: &str) -> Result<(), Malformed> {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    match text.split_once(':') {
        Some((scheme, "")) => Err(Malformed::new(format!("missing key after `{scheme}:`"))),
        Some((scheme, _)) if is_scheme(scheme) && !text.contains(char::is_control) => Ok(()),
        _ => Err(Malformed::new(
            "a KEK URI begins with its backend, such as `local:/etc/sidekey/kek`",
        )),
    }
}

impl KekUri {
    /// Returns the part before the first colon, which names the backend.
    pub fn scheme(&self) -> &str {
        self.split().0
    }

    /// Returns the part after the first colon.
    pub fn rest(&self) -> &str {
        self.split().1
    }

    fn split(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or((&self.0, ""))
    }
}

/// The KEKs that may unwrap a keyring's versions. The manifest names KEKs, but its author need not
/// be trusted to choose them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KekScope {
    /// All that the manifest names, because its author is authenticated otherwise.
    Any,
    /// Those that one of these patterns matches.
    Only(Vec<KekPattern>),
}

impl KekScope {
    /// Returns whether a wrap under `kek` may be unwrapped.
    pub fn covers(&self, kek: &KekUri) -> bool {
        match self {
            Self::Any => true,
            Self::Only(patterns) => patterns.iter().any(|pattern| pattern.covers(kek)),
        }
    }
}

/// A KEK's URI, or a prefix of URIs that ends in `:` or `/`, followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KekPattern {
    uri: String,
    is_prefix: bool,
}

impl KekPattern {
    fn covers(&self, kek: &KekUri) -> bool {
        match kek.as_str().strip_prefix(&self.uri) {
            Some("") => !self.is_prefix,
            // `..` would leave the folder that the prefix names.
            Some(rest) => self.is_prefix && rest.split('/').all(|step| step != ".."),
            None => false,
        }
    }

    /// Resolves a relative `local:` path against `folder`.
    pub fn anchored(self, folder: &std::path::Path) -> Self {
        match self
            .uri
            .strip_prefix("local:")
            .filter(|path| !path.is_empty())
        {
            Some(path) => Self {
                uri: format!("local:{}", folder.join(path).display()),
                ..self
            },
            _ => self,
        }
    }
}

impl FromStr for KekPattern {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (uri, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if uri.contains('*') || is_prefix && !uri.ends_with([':', '/']) {
            return Err(Malformed::new(
                "`*` is only allowed at the end, after `:` or `/`",
            ));
        }
        check_kek_uri(text)?;
        Ok(Self {
            uri: uri.into(),
            is_prefix,
        })
    }
}

impl fmt::Display for KekPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.uri, if self.is_prefix { "*" } else { "" })
    }
}

/// Returns whether a path in Vault names what it shows: no step is empty, leaves its folder, or
/// would need a quote. Vault itself allows most characters; requests escape them.
pub(crate) fn is_vault_path(path: &str) -> bool {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '?' | '#' | '%' | '*' | '"' | '\\');
    path.split('/').all(|step| {
        !matches!(step, "" | "." | "..") && step.trim() == step && step.chars().all(is_plain)
    })
}

pub(crate) const VAULT_PATH: &str = "without empty steps, `.`, `..`, `?`, `#`, `%`, `*`, `\"` and \
                                     backslashes; the API's `data/` is left out";

/// Where a manifest is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// A local file: `file:PATH`, or a plain path.
    File(PathBuf),
    /// A secret in Vault's key-value engine, version 2: `vault-kv:MOUNT/PATH`.
    VaultKv {
        /// The engine's mount path, one segment.
        mount: String,
        /// The secret's path.
        path: String,
    },
    /// A secret in AWS Secrets Manager: `aws-sm:NAME`, or its ARN.
    AwsSm(String),
    /// An S3 object: `s3://BUCKET/KEY`.
    S3 {
        /// The bucket.
        bucket: String,
        /// The object's key.
        key: String,
    },
    /// A web resource, which is read-only: `https://…`.
    Web(String),
}

const LOCATIONS: &str = "file:, vault-kv:, aws-sm:, s3://, https://";

impl FromStr for Location {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let is_scheme = |scheme: &str| {
            scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        let pair = |what: &str, rest: &str| match rest.split_once('/') {
            Some((first, rest)) if !first.is_empty() && !rest.is_empty() => {
                Ok((first.to_owned(), rest.to_owned()))
            }
            _ => Err(Malformed::new(format!("expected {what}"))),
        };
        match text.split_once(':') {
            _ if text.is_empty() => Err(Malformed::new("the path is empty")),
            Some(("file", "")) => Err(Malformed::new("the path is empty")),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("vault-kv", rest)) => match rest.split_once('/') {
                Some((mount, path)) if is_vault_path(rest) => Ok(Self::VaultKv {
                    mount: mount.to_owned(),
                    path: path.to_owned(),
                }),
                _ => Err(Malformed::new(format!(
                    "expected vault-kv:MOUNT/PATH {VAULT_PATH}"
                ))),
            },
            Some(("aws-sm", name)) if !name.is_empty() => Ok(Self::AwsSm(name.to_owned())),
            Some(("s3", rest)) => match rest.strip_prefix("//") {
                Some(rest) => {
                    pair("s3://BUCKET/KEY", rest).map(|(bucket, key)| Self::S3 { bucket, key })
                }
                None => Err(Malformed::new("expected s3://BUCKET/KEY")),
            },
            Some(("https" | "http", rest)) if rest.len() > 2 && rest.starts_with("//") => {
                let authority = rest[2..].split(['/', '?', '#']).next().unwrap_or_default();
                if authority.contains('@') {
                    return Err(Malformed::new(
                        "a URL must not contain credentials, because URLs are logged; \
                         authenticate with a client certificate (`[web]`)",
                    ));
                }
                Ok(Self::Web(text.to_owned()))
            }
            Some((scheme, _)) if is_scheme(scheme) => Err(Malformed::new(format!(
                "unknown scheme `{scheme}:` of a manifest location; expected one of {LOCATIONS}"
            ))),
            _ => Ok(Self::File(text.into())),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::VaultKv { mount, path } => write!(f, "vault-kv:{mount}/{path}"),
            Self::AwsSm(name) => write!(f, "aws-sm:{name}"),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            // A query may be a credential, as in a presigned URL.
            Self::Web(url) => match url.split_once('?') {
                Some((url, _)) => write!(f, "{url}?…"),
                None => f.write_str(url),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_its_uri_or_its_prefix() {
        let covers = |pattern: &str, uri: &str| {
            pattern
                .parse::<KekPattern>()
                .expect("pattern")
                .covers(&uri.parse().expect("URI"))
        };
        assert!(covers("local:/etc/kek", "local:/etc/kek"));
        assert!(!covers("local:/etc/kek", "local:/etc/kek2"));
        assert!(covers("local:/etc/keks/*", "local:/etc/keks/one"));
        assert!(!covers(
            "local:/etc/keks/*",
            "local:/etc/keks/../../tmp/mine"
        ));
        assert!(!covers("local:/etc/keks/*", "local:/etc/keks2"));
        assert!(!covers("local:/etc/keks/*", "local:/etc/keks/"));
        assert!(covers("aws-kms:*", "aws-kms:alias/a"));
        for malformed in ["*", "aws-kms:a*", "aws-kms:*/key", "kek", "local:"] {
            malformed.parse::<KekPattern>().expect_err(malformed);
        }
        let anchored = "local:keks/*"
            .parse::<KekPattern>()
            .expect("pattern")
            .anchored("/etc".as_ref());
        assert_eq!(anchored.to_string(), "local:/etc/keks/*");
    }

    #[test]
    fn locations_read_as_they_are_written() {
        for text in [
            "file:/etc/a.json",
            "vault-kv:secret/my app/user@example.com",
            "vault-kv:secret/sidekey/orders",
            "aws-sm:sidekey/orders",
            "s3://bucket/a/b.json",
            "https://host/a",
        ] {
            assert_eq!(text.parse::<Location>().expect(text).to_string(), text);
        }
        assert_eq!("a/b".parse(), Ok(Location::File("a/b".into())));
        // A credential in the query is used but not shown.
        let signed: Location = "https://host/a?X-Amz-Signature=secret"
            .parse()
            .expect("presigned");
        assert_eq!(signed.to_string(), "https://host/a?…");
        assert_eq!(
            signed,
            Location::Web("https://host/a?X-Amz-Signature=secret".into())
        );
        for with_password in [
            "https://user:pw@host/a",
            "https://token@host",
            "http://user:pw@host?a",
        ] {
            let error = with_password
                .parse::<Location>()
                .expect_err(with_password)
                .to_string();
            assert!(
                !error.contains("pw@") && error.contains("must not contain credentials"),
                "{error}"
            );
        }
        "https://host/a@b".parse::<Location>().expect("no user");
        for malformed in [
            "",
            "file:",
            "vault-kv:secret",
            "vault-kv:/a",
            "aws-sm:",
            "s3:bucket/key",
            "s3://bucket/",
            "s4://a/b",
            "https:a",
        ] {
            malformed.parse::<Location>().expect_err(malformed);
        }
        // Each would request a path other than the one it shows.
        for elsewhere in [
            "secret/../sys/seal",
            "secret/a//b",
            "secret/a/",
            "secret/./a",
            "secret/a?version=1",
            "secret/a%2fb",
            "secret/ a",
            "secret/a/ ",
            "../a",
        ] {
            format!("vault-kv:{elsewhere}")
                .parse::<Location>()
                .expect_err(elsewhere);
        }
    }
}
