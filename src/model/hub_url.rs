use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use hyper::{Uri, http::uri::Scheme};

use super::names::Malformed;

/// The URL of a hub: `https://HOST:PORT`, or `http://HOST:PORT` on loopback.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubUrl {
    is_tls: bool,
    /// Host and port, as they were written.
    authority: Arc<str>,
    /// Without the brackets of an IPv6 address.
    host: Arc<str>,
    port: u16,
}

impl HubUrl {
    /// Returns whether the hub speaks TLS.
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
}

impl FromStr for HubUrl {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let expected = || Malformed::new("expected https://HOST:PORT");
        let url: Uri = text.parse().map_err(|_| expected())?;
        let authority = url.authority().ok_or_else(expected)?;
        // URLs are logged and shown.
        if authority.as_str().contains('@') {
            return Err(Malformed::new("a hub's URL must not contain credentials"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(Malformed::new("a hub's URL has neither a path nor a query"));
        }
        let host = authority.host().trim_matches(['[', ']']);
        let is_tls = match url.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP && is_loopback(host) => false,
            Some(scheme) if *scheme == Scheme::HTTP => {
                return Err(Malformed::new(
                    "plain http is for a hub on this machine (127.0.0.1, ::1 or localhost); use \
                     https://HOST:PORT",
                ));
            }
            _ => return Err(expected()),
        };
        let port = authority
            .as_str()
            .strip_prefix(authority.host())
            .and_then(|port| port.strip_prefix(':'))
            .and_then(|port| port.parse().ok())
            .ok_or_else(expected)?;
        if host.is_empty() {
            return Err(expected());
        }
        Ok(Self {
            is_tls,
            authority: authority.as_str().into(),
            host: host.into(),
            port,
        })
    }
}

/// Returns whether a host, without brackets, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_scheme_a_host_and_a_port() {
        for (text, is_tls, host, port, shown) in [
            (
                "https://hub.example:8443/",
                true,
                "hub.example",
                8443,
                "https://hub.example:8443",
            ),
            ("https://[::1]:80", true, "::1", 80, "https://[::1]:80"),
            (
                "http://127.0.0.1:1",
                false,
                "127.0.0.1",
                1,
                "http://127.0.0.1:1",
            ),
            ("http://[::1]:1", false, "::1", 1, "http://[::1]:1"),
            (
                "http://localhost:1",
                false,
                "localhost",
                1,
                "http://localhost:1",
            ),
        ] {
            let url: HubUrl = text.parse().expect(text);
            assert_eq!((url.is_tls(), url.host(), url.port()), (is_tls, host, port));
            assert_eq!(url.to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, words) in [
            ("", "expected https://"),
            ("hub:8443", "expected https://"),
            ("https://hub", "expected https://"),
            ("https://hub:port", "expected https://"),
            ("https://:1", "expected https://"),
            ("https://hub:70000", "expected https://"),
            ("ftp://hub:1", "expected https://"),
            ("http://hub:1", "plain http"),
            ("http://127.0.0.1.example:1", "plain http"),
            ("https://hub:1/path", "neither a path"),
            ("https://hub:1/?query", "neither a path"),
            ("https://user:secret@hub:1", "credentials"),
        ] {
            let error = text.parse::<HubUrl>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
