use std::{fmt, str::FromStr};

use super::names::Malformed;

/// A subject alternative name of a certificate (RFC 5280 §4.2.1.6), or a prefix of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// A DNS name, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE ID.
    Uri(String),
    /// All URIs with this prefix, which ends in `/`.
    UriPrefix(String),
}

impl CertificateName {
    /// Returns whether it matches a certificate's DNS name.
    pub fn is_dns(&self, name: &str) -> bool {
        matches!(self, Self::Dns(dns) if dns.eq_ignore_ascii_case(name))
    }

    /// Returns whether it matches a certificate's URI.
    pub fn is_uri(&self, uri: &str) -> bool {
        match self {
            Self::Dns(_) => false,
            Self::Uri(own) => own == uri,
            // A `..` segment would leave the prefix.
            Self::UriPrefix(prefix) => uri.strip_prefix(prefix.as_str()).is_some_and(|rest| {
                !rest.is_empty() && !rest.split('/').any(|segment| matches!(segment, "." | ".."))
            }),
        }
    }
}

impl FromStr for CertificateName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || {
            Malformed::new(
                "expected a DNS name such as \"ops.example.com\", a URI such as \
                 \"spiffe://example.org/ns/ops/sa/prometheus\", or a URI prefix that ends in \
                 \"/*\"",
            )
        };
        if !text.is_ascii()
            || text.contains(|c: char| c.is_ascii_whitespace() || c.is_ascii_control())
        {
            return Err(malformed());
        }
        match text.split_once("://") {
            Some((scheme, rest)) => {
                let (path, is_prefix) = rest
                    .strip_suffix('*')
                    .map_or((rest, false), |path| (path, true));
                let is_whole = !scheme.is_empty()
                    && !path.starts_with('/')
                    && !path.is_empty()
                    && !path.contains('*');
                match (is_whole, is_prefix) {
                    (true, false) => Ok(Self::Uri(text.to_owned())),
                    (true, true) if path.ends_with('/') => {
                        Ok(Self::UriPrefix(format!("{scheme}://{path}")))
                    }
                    _ => Err(malformed()),
                }
            }
            None => {
                let is_label = |label: &str| {
                    !label.is_empty()
                        && label
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                };
                if text.split('.').all(is_label) {
                    Ok(Self::Dns(text.to_ascii_lowercase()))
                } else {
                    Err(malformed())
                }
            }
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Uri(text) => f.write_str(text),
            Self::UriPrefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CertificateName {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn a_name_covers_exactly_what_it_says() {
        assert!(name("Ops.Example.com").is_dns("ops.example.COM"));
        assert!(
            !name("ops.example.com").is_dns("x.ops.example.com")
                && !name("ops.example.com").is_uri("ops.example.com")
        );
        let exact = name("spiffe://example.org/ns/ops/sa/prometheus");
        assert!(exact.is_uri("spiffe://example.org/ns/ops/sa/prometheus"));
        assert!(
            !exact.is_uri("spiffe://example.org/ns/ops/sa/prometheus2")
                && !exact.is_dns("example.org")
        );
        let many = name("spiffe://example.org/ns/ops/*");
        assert!(
            !many.is_uri("spiffe://example.org/ns/ops/../shop/sa/a")
                && !many.is_uri("spiffe://example.org/ns/ops/./a")
        );
        assert!(many.is_uri("spiffe://example.org/ns/ops/sa/prometheus"));
        for other in [
            "spiffe://example.org/ns/ops/",
            "spiffe://example.org/ns/ops",
            "spiffe://example.org/ns/ops2/sa/x",
        ] {
            assert!(!many.is_uri(other), "{other}");
        }
        for text in [
            "ops.example.com",
            "spiffe://example.org/a",
            "spiffe://example.org/a/*",
        ] {
            assert_eq!(name(text).to_string(), text);
        }
    }

    #[test]
    fn a_name_that_could_match_anyone_is_rejected() {
        let texts = [
            "",
            "*",
            "*.example.com",
            "a..b",
            "a b",
            "spiffe://*",
            "spiffe:///a",
            "spiffe://a*",
            "spiffe://a/*/b",
            "é",
            "a/b",
        ];
        for text in texts {
            assert!(text.parse::<CertificateName>().is_err(), "{text}");
        }
    }
}
