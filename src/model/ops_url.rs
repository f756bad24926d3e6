use std::{fmt, str::FromStr, sync::Arc};

use hyper::{Uri, http::uri::Scheme};

use super::names::Malformed;

/// The URL of a sidecar's ops listener: `http://HOST:PORT` or `https://HOST:PORT`. A path and a
/// query are ignored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpsUrl {
    is_tls: bool,
    /// Host and port, if there is one, as they were written.
    authority: Arc<str>,
    /// Without the brackets of an IPv6 address.
    host: Arc<str>,
    port: u16,
}

impl OpsUrl {
    /// The default port of ops listeners.
    pub const DEFAULT_PORT: u16 = 9464;

    /// Returns whether the listener speaks TLS.
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

impl FromStr for OpsUrl {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let expected = || Malformed::new("expected http://HOST:PORT or https://HOST:PORT");
        let url: Uri = text.parse().map_err(|_| expected())?;
        let authority = url.authority().ok_or_else(expected)?;
        // URLs are logged and recorded.
        if authority.as_str().contains('@') {
            return Err(Malformed::new(
                "a sidecar URL must not contain credentials; authenticate with a client \
                 certificate",
            ));
        }
        let is_tls = match url.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(expected()),
        };
        let host = authority.host().trim_matches(['[', ']']);
        // `Authority::port` is None for an invalid port as well.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => Self::DEFAULT_PORT,
            Some(port) => port
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .ok_or_else(expected)?,
            None => return Err(expected()),
        };
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

impl fmt::Display for OpsUrl {
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
                "http://10.1.2.3",
                false,
                "10.1.2.3",
                9464,
                "http://10.1.2.3",
            ),
            ("https://[::1]:80/x?y", true, "::1", 80, "https://[::1]:80"),
            ("HTTPS://Pod.ns:1", true, "Pod.ns", 1, "https://Pod.ns:1"),
        ] {
            let url: OpsUrl = text.parse().expect(text);
            assert_eq!((url.is_tls(), url.host(), url.port()), (is_tls, host, port));
            assert_eq!(url.to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "10.1.2.3:9464",
            "/status",
            "unix:///run/ops",
            "http://",
            "http://host:port",
            "http://host:70000",
            "http://user:secret@host",
        ] {
            let error = text.parse::<OpsUrl>().expect_err(text);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
