//! The files with which a sidecar joins: the hub's authorities, and a token or a certificate of its
//! own. They are read again for every connection, and a token for every request, because both
//! rotate.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::header::HeaderValue;
use rustls::ClientConfig;
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::{
    backend::{Identity, client_config},
    config::{self, HubLogin},
    crypto::fingerprint,
    files::{BlockingPool, open_regular, read_at_most},
};

/// How often the files of a connection are compared with those that it was made with.
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// The longest token, in bytes. Those of Kubernetes have one to two thousand.
const MAX_TOKEN: usize = 16 << 10;
/// The most bytes of a TLS file. A bundle of all public authorities is a quarter of this.
const MAX_FILE: usize = 1 << 20;
const ALPN: &[u8] = b"h2";

/// The files with which a sidecar joins.
pub(super) struct Credentials {
    is_tls: bool,
    identity: Identity,
    token: Option<PathBuf>,
    files: BlockingPool,
}

/// What a TLS connection is made with.
pub(super) struct TlsMaterial {
    pub(super) config: Arc<ClientConfig>,
    /// Identifies the contents of the files.
    pub(super) fingerprint: [u8; 32],
}

impl Credentials {
    pub(super) fn new(settings: &config::Hub) -> Self {
        let (token, client) = match &settings.login {
            HubLogin::Anonymous => (None, None),
            HubLogin::Token(file) => (Some(file.clone()), None),
            HubLogin::Certificate { certificate, key } => {
                (None, Some((certificate.clone(), key.clone())))
            }
        };
        Self {
            is_tls: settings.url.is_tls(),
            identity: Identity {
                ca_file: settings.ca_file.clone(),
                client,
            },
            token,
            files: BlockingPool::new(1),
        }
    }

    /// Reads all files once.
    pub(super) async fn check(&self) -> Result<(), Failure> {
        self.tls().await?;
        self.authorization().await?;
        Ok(())
    }

    /// Reads what a connection needs; None for one without TLS.
    pub(super) async fn tls(&self) -> Result<Option<TlsMaterial>, Failure> {
        if !self.is_tls {
            return Ok(None);
        }
        let identity = self.identity.clone();
        let read = self.files.run(move || {
            // In this order, a change in between is noticed later.
            let fingerprint = fingerprint_of_files(&identity)?;
            let mut config = client_config(&identity).map_err(Failure::files)?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            Ok(TlsMaterial {
                config: Arc::new(config),
                fingerprint,
            })
        });
        read.await.map(Some)
    }

    /// Reads the token, and returns the header that presents it; None without one.
    pub(super) async fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        match self.token.clone() {
            None => Ok(None),
            Some(file) => self.files.run(move || bearer(&file)).await.map(Some),
        }
    }

    /// Resolves once the files differ from those of `known`, and can be used.
    pub(super) async fn renewed(&self, known: Option<[u8; 32]>) {
        loop {
            sleep(POLL_INTERVAL).await;
            if let Ok(Some(tls)) = self.tls().await
                && Some(tls.fingerprint) != known
            {
                return;
            }
        }
    }
}

fn fingerprint_of_files(identity: &Identity) -> Result<[u8; 32], Failure> {
    let own = identity.client.iter();
    let own = own.flat_map(|(certificate, key)| [certificate, key]);
    let mut each = Vec::new();
    for file in identity.ca_file.iter().chain(own) {
        let read = File::open(file).and_then(|open| read_at_most(open, MAX_FILE));
        let bytes = read.map_err(|error| unreadable(file, &error))?;
        each.extend_from_slice(&fingerprint(&bytes));
    }
    Ok(fingerprint(&each))
}

fn bearer(file: &Path) -> Result<HeaderValue, Failure> {
    // Not required to be private: the mode of a projected token is the kubelet's to choose.
    let read = open_regular(file).and_then(|open| read_at_most(open, MAX_TOKEN + 1));
    let bytes = read.map_err(|error| unreadable(file, &error))?;
    let token = bytes.trim_ascii();
    let is_token = (1..=MAX_TOKEN).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    if !is_token {
        return Err(Failure::files(format!(
            "{}: a token must be one line of 1 to {MAX_TOKEN} visible characters",
            file.display()
        )));
    }
    let header = Zeroizing::new([b"Bearer ", token].concat());
    let mut header =
        HeaderValue::from_bytes(&header).map_err(|error| Failure::files(error.to_string()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::files(format!("can't read {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_token(text: &str) -> Result<String, Failure> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(&file, text).expect("write");
        let header = bearer(file.path())?;
        assert!(header.is_sensitive(), "its Debug shows nothing");
        Ok(header.to_str().expect("visible").to_owned())
    }

    #[test]
    fn a_token_is_one_line_of_visible_characters() {
        assert_eq!(with_token("a.b-c\n").as_deref(), Ok("Bearer a.b-c"));
        let longest = "t".repeat(MAX_TOKEN);
        assert_eq!(with_token(&longest), Ok(format!("Bearer {longest}")));
        for text in ["", "\n", "a b", "a\nb", "é", &"t".repeat(MAX_TOKEN + 1)] {
            let failure = with_token(text).expect_err(text);
            assert_eq!(failure.code, "hub_files");
            assert!(failure.message.contains("a token must be"), "{failure}");
        }
        let missing = bearer(Path::new("/missing")).expect_err("missing");
        assert!(missing.message.starts_with("can't read /missing: "));
    }
}
