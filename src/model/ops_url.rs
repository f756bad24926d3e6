use std::{fmt, ops::Deref, str::FromStr};

use super::{
    http_url::{HttpUrl, Rules},
    names::Malformed,
};

/// The URL of a sidecar's ops listener: `http://HOST:PORT` or `https://HOST:PORT`. A path and a
/// query are ignored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpsUrl(HttpUrl);

impl OpsUrl {
    /// The default port of ops listeners.
    pub const DEFAULT_PORT: u16 = 9464;

    const RULES: Rules = Rules {
        expected: "expected http://HOST:PORT or https://HOST:PORT",
        has_credentials: "a sidecar URL must not contain credentials; authenticate with a client \
                          certificate",
        default_port: Some(Self::DEFAULT_PORT),
    };
}

impl FromStr for OpsUrl {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        HttpUrl::parse(text, &Self::RULES).map(|parsed| Self(parsed.url))
    }
}

impl Deref for OpsUrl {
    type Target = HttpUrl;

    fn deref(&self) -> &HttpUrl {
        &self.0
    }
}

impl fmt::Display for OpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
