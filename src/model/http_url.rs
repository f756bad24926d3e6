use std::{fmt, sync::Arc};

use hyper::{Uri, http::uri::Scheme};

use super::names::Malformed;

/// `http://HOST:PORT` or `https://HOST:PORT`: where requests go, whatever their path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpUrl {
    is_tls: bool,
    /// Host and port, if there is one, as they were written.
    authority: Arc<str>,
    /// Without the brackets of an IPv6 address.
    host: Arc<str>,
    port: u16,
}

/// A URL and what a caller may not want to have in it.
pub(super) struct ParsedUrl {
    pub(super) url: HttpUrl,
    pub(super) has_path_or_query: bool,
}

/// What a kind of URL allows, and how its errors name it.
pub(super) struct Rules {
    /// The form that errors ask for.
    pub(super) expected: &'static str,
    /// The error for a URL with a user or password: URLs are logged, shown and recorded.
    pub(super) has_credentials: &'static str,
    /// The port of a URL without one. None: it must have one.
    pub(super) default_port: Option<u16>,
}

impl HttpUrl {
    /// Returns whether the server speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Returns the host's name, or its address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns host and port as in a `Host` header (RFC 9110 §7.2).
    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) fn parse(text: &str, rules: &Rules) -> Result<ParsedUrl, Malformed> {
        let expected = || Malformed::new(rules.expected);
        let url: Uri = text.parse().map_err(|_| expected())?;
        let authority = url.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err(Malformed::new(rules.has_credentials));
        }
        let is_tls = match url.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(expected()),
        };
        let host = authority.host().trim_matches(['[', ']']);
        // `Authority::port` is None for an invalid port as well.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => rules.default_port.ok_or_else(expected)?,
            Some(port) => port
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .ok_or_else(expected)?,
            None => return Err(expected()),
        };
        if host.is_empty() {
            return Err(expected());
        }
        Ok(ParsedUrl {
            has_path_or_query: !matches!(url.path(), "" | "/") || url.query().is_some(),
            url: Self {
                is_tls,
                authority: authority.as_str().into(),
                host: host.into(),
                port,
            },
        })
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}
