//! Builds a rustls configuration from PEM files, or lists everything wrong with them.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::UnixTime,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_cert::{Certificate, der::Decode};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    clock::Clock,
    config::{Tls, TlsVersion},
    crypto::fingerprint,
    files::read_at_most,
};

/// The longest file. A bundle of all public authorities is a quarter of this.
const MAX_FILE_LEN: u64 = 1 << 20;
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Whether a connection requires a client certificate, if the listener has client authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    Required,
    /// Each path decides.
    Optional,
}

/// The contents of a listener's TLS files.
pub(crate) struct TlsFiles {
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    pub(crate) is_key_world_readable: bool,
    ca: Option<Zeroizing<Vec<u8>>>,
}

/// What a listener needs for handshakes.
pub(crate) struct Material {
    pub(crate) config: Arc<ServerConfig>,
    /// What `config` verifies client certificates with.
    pub(crate) client_verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// The validity of our certificate, both ends included.
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

impl Material {
    /// Why clients would reject our certificate at this time, if they would.
    pub(crate) fn invalid_at(&self, now: Timestamp) -> Option<String> {
        let Self {
            not_before,
            not_after,
            ..
        } = self;
        if now > *not_after {
            Some(format!("it expired at {not_after}"))
        } else if now < *not_before {
            Some(format!("it is not valid before {not_before}"))
        } else {
            None
        }
    }
}

/// Everything wrong with the files, one phrase each.
type Problems = Vec<String>;

impl TlsFiles {
    pub(crate) fn read(settings: &Tls) -> Result<Self, Problems> {
        let certificate = contents(&settings.certificate);
        let key = contents(&settings.key);
        let ca = settings
            .clients
            .as_ref()
            .map(|clients| contents(&clients.ca))
            .transpose();
        match (certificate, key, ca) {
            (Ok((certificate, _)), Ok((key, mode)), Ok(ca)) => Ok(Self {
                certificate,
                key,
                is_key_world_readable: mode & 0o004 != 0,
                ca: ca.map(|(bytes, _)| bytes),
            }),
            (certificate, key, ca) => Err([certificate.err(), key.err(), ca.err()]
                .into_iter()
                .flatten()
                .collect()),
        }
    }

    /// Identifies these contents.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let parts = [Some(&self.certificate), Some(&self.key), self.ca.as_ref()];
        let each: Vec<u8> = parts
            .into_iter()
            .flatten()
            .flat_map(|bytes| fingerprint(bytes))
            .collect();
        fingerprint(&each)
    }

    /// Builds what handshakes need.
    pub(crate) fn build(
        &self,
        settings: &Tls,
        client_auth: ClientAuth,
        clock: &Clock,
    ) -> Result<Material, Problems> {
        // Passed explicitly: another library could change the process-wide default.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate =
            certificates(&settings.certificate, &self.certificate).and_then(|chain| {
                validity(&settings.certificate, &chain).map(|validity| (chain, validity))
            });
        let key = private_key(&settings.key, &self.key);
        let clients = settings.clients.as_ref().zip(self.ca.as_ref());
        let verifier = clients
            .map(|(clients, ca)| verifier(&clients.ca, ca, client_auth, &provider))
            .transpose();
        let (((chain, validity), key), verifier) = match (certificate, key, verifier) {
            (Ok(certificate), Ok(key), Ok(verifier)) => ((certificate, key), verifier),
            (certificate, key, verifier) => {
                return Err([certificate.err(), key.err(), verifier.err()]
                    .into_iter()
                    .flatten()
                    .collect());
            }
        };
        let certified = CertifiedKey::new(chain, key);
        if let Err(error) = certified.keys_match() {
            let files = (settings.key.display(), settings.certificate.display());
            return Err(vec![format!(
                "{} is not the key of {}: {error}",
                files.0, files.1
            )]);
        }
        let builder = ServerConfig::builder_with_details(provider, Arc::new(clock.clone()))
            .with_protocol_versions(versions(settings.min_version))
            .map_err(|error| vec![format!("TLS: {error}")])?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        // Without resumption, a changed list of authorities applies to every new connection.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let (not_before, not_after) = validity;
        Ok(Material {
            config: Arc::new(config),
            client_verifier: verifier,
            not_before,
            not_after,
        })
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match min {
        TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &BOTH[..1],
    }
}

/// Reads a file and its mode. The buffer never grows, which would leave copies of a key in memory.
fn contents(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), String> {
    let unreadable = |error: std::io::Error| format!("can't read {}: {error}", path.display());
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_LEN {
        return Err(format!(
            "{} is not a regular file of at most {MAX_FILE_LEN} bytes",
            path.display()
        ));
    }
    let length = usize::try_from(metadata.len()).unwrap_or_default();
    let bytes = read_at_most(file, length + 1).map_err(unreadable)?;
    if bytes.len() > length {
        return Err(format!("{} grew while it was being read", path.display()));
    }
    Ok((bytes, metadata.mode()))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(format!(
            "{}: the file contains no certificate",
            path.display()
        )),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// The validity of the first certificate in a chain.
fn validity(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(Timestamp, Timestamp), String> {
    let malformed = |reason: String| {
        format!(
            "{}: can't parse the first certificate: {reason}",
            path.display()
        )
    };
    let certificate =
        Certificate::from_der(&chain[0]).map_err(|error| malformed(error.to_string()))?;
    let validity = certificate.tbs_certificate().validity();
    let time = |time: &x509_cert::time::Time| {
        let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
        // X.509 times end with the year 9999, as `Timestamp` does.
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    };
    Ok((time(&validity.not_before), time(&validity.not_after)))
}

fn private_key(path: &Path, pem: &[u8]) -> Result<Arc<dyn rustls::sign::SigningKey>, String> {
    let no_key = |error| {
        format!(
            "{}: {error}; the key must be PEM without a passphrase",
            path.display()
        )
    };
    let mut der = PrivateKeyDer::from_pem_slice(pem).map_err(no_key)?;
    let key = aws_lc_rs::sign::any_supported_type(&der);
    der.zeroize();
    key.map_err(|error| format!("{}: {error}", path.display()))
}

fn verifier(
    path: &Path,
    pem: &[u8],
    client_auth: ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if client_auth == ClientAuth::Optional {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder
        .build()
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// The paths of a listener's TLS files.
pub(crate) fn paths(settings: &Tls) -> Vec<PathBuf> {
    let ca = settings.clients.as_ref().map(|clients| clients.ca.clone());
    [
        Some(settings.certificate.clone()),
        Some(settings.key.clone()),
        ca,
    ]
    .into_iter()
    .flatten()
    .collect()
}
