use std::{fmt, net::IpAddr, ops::Deref, str::FromStr};

use super::{
    http_url::{HttpUrl, Rules},
    names::Malformed,
};

/// The URL of a hub: `https://HOST:PORT`, or `http://HOST:PORT` on loopback.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubUrl(HttpUrl);

impl HubUrl {
    const RULES: Rules = Rules {
        expected: "expected https://HOST:PORT",
        has_credentials: "a hub's URL must not contain credentials",
        default_port: None,
    };
}

impl FromStr for HubUrl {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let parsed = HttpUrl::parse(text, &Self::RULES)?;
        if parsed.has_path_or_query {
            return Err(Malformed::new("a hub's URL has neither a path nor a query"));
        }
        if !parsed.url.is_tls() && !is_loopback(parsed.url.host()) {
            return Err(Malformed::new(
                "plain http is for a hub on this machine (127.0.0.1, ::1 or localhost); use \
                 https://HOST:PORT",
            ));
        }
        Ok(Self(parsed.url))
    }
}

impl Deref for HubUrl {
    type Target = HttpUrl;

    fn deref(&self) -> &HttpUrl {
        &self.0
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
