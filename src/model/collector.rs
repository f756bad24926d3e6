use std::{fmt, str::FromStr};

use hyper::Uri;

use super::{hub_url::is_loopback, names::Malformed};

/// A collector of audit records. Its text is shown; of a URL, only scheme, host and port are: path
/// and query may contain a credential.
#[derive(Clone, PartialEq, Eq)]
pub enum Collector {
    /// Syslog (RFC 5424) over TCP (RFC 6587) or TLS (RFC 5425).
    Syslog {
        /// The host's name, or its address without brackets.
        host: String,
        /// The port.
        port: u16,
        /// Whether it speaks TLS.
        is_tls: bool,
    },
    /// Lines of JSON, by POST.
    Http {
        /// The `https` URL, or an `http` one on loopback.
        url: String,
        /// Its scheme, host and port.
        origin: String,
        /// Whether it is an `https` URL.
        is_tls: bool,
    },
}

impl Collector {
    /// Returns whether the collector speaks TLS.
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Syslog { is_tls, .. } | Self::Http { is_tls, .. } => *is_tls,
        }
    }
}

impl FromStr for Collector {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let expected = || {
            Malformed::new(
                "expected syslog+tls://HOST:PORT, syslog+tcp://HOST:PORT or https://HOST/PATH",
            )
        };
        let url: Uri = text.parse().map_err(|_| expected())?;
        let authority = url.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err(Malformed::new(
                "must not contain credentials; use authorization_file",
            ));
        }
        let host = authority.host().trim_matches(['[', ']']);
        let port = authority.port_u16();
        let has_bad_port = port.is_none() && authority.as_str() != authority.host();
        if host.is_empty() || has_bad_port {
            return Err(expected());
        }
        let scheme = url.scheme_str().unwrap_or_default().to_ascii_lowercase();
        let is_tls = match scheme.as_str() {
            "https" | "syslog+tls" => true,
            "syslog+tcp" => false,
            "http" if is_loopback(host) => false,
            "http" => {
                return Err(Malformed::new(
                    "plain http is for a collector on this machine (127.0.0.1, ::1 or localhost); \
                     use https",
                ));
            }
            _ => return Err(expected()),
        };
        if matches!(scheme.as_str(), "https" | "http") {
            return Ok(Self::Http {
                origin: format!("{scheme}://{authority}"),
                url: url.to_string(),
                is_tls,
            });
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(expected());
        }
        Ok(Self::Syslog {
            host: host.to_owned(),
            port: port.ok_or_else(expected)?,
            is_tls,
        })
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { origin, .. } => f.write_str(origin),
            Self::Syslog { host, port, is_tls } => {
                let scheme = if *is_tls { "syslog+tls" } else { "syslog+tcp" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
        }
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<(String, bool), String> {
        let collector: Result<Collector, _> = text.parse();
        collector
            .map(|collector| (collector.to_string(), collector.is_tls()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_collector_is_shown_without_what_may_be_a_credential() {
        for (text, expected, is_tls) in [
            ("syslog+tls://siem:6514", "syslog+tls://siem:6514", true),
            ("Syslog+TCP://[::1]:601/", "syslog+tcp://[::1]:601", false),
            ("https://siem/t0ken?key=k", "https://siem", true),
            ("https://siem:8088/t0ken", "https://siem:8088", true),
            ("http://localhost:80/a", "http://localhost:80", false),
        ] {
            assert_eq!(shown(text), Ok((expected.to_owned(), is_tls)), "{text}");
            let collector: Collector = text.parse().expect("a collector");
            assert_eq!(format!("{collector:?}"), expected);
        }
    }

    #[test]
    fn a_url_keeps_its_path_and_query() {
        let Collector::Http { url, .. } = "https://siem/a?b=c".parse().expect("a collector") else {
            panic!("a URL")
        };
        assert_eq!(url, "https://siem/a?b=c");
    }

    #[test]
    fn what_is_no_collector_is_refused() {
        for (text, reason) in [
            ("", "expected"),
            ("siem:6514", "expected"),
            ("syslog://siem:514", "expected"),
            ("syslog+tls://siem", "expected"),
            ("syslog+tls://siem:6514/path", "expected"),
            ("syslog+tls://siem:70000", "expected"),
            ("https://siem:70000/", "expected"),
            ("http://siem/ingest", "plain http is for"),
            ("https://user:pw@siem/", "must not contain credentials"),
        ] {
            let error = shown(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("pw"), "{error}");
        }
    }
}
