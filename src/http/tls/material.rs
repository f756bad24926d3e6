//! From files to a rustls configuration, or to everything that is wrong with them.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_cert::{Certificate, der::Decode};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    config::{Tls, TlsVersion},
    crypto::fingerprint,
};

/// The longest file; a bundle of every public authority has a quarter of it.
const LONGEST: u64 = 1 << 20;
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Whether a client must show a certificate to get a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Yes.
    Always,
    /// No: each path decides.
    ByPath,
}

/// The files of a listener's TLS as they are at one moment.
pub(crate) struct Files {
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    /// Whether users that own neither the file nor its group may read the key.
    pub(crate) is_key_open: bool,
    ca: Option<Zeroizing<Vec<u8>>>,
}

/// What a listener needs for its handshakes.
pub(crate) struct Material {
    pub(crate) config: Arc<ServerConfig>,
    /// From when our certificate is valid.
    pub(crate) not_before: Timestamp,
    /// The last moment at which it is.
    pub(crate) not_after: Timestamp,
}

/// What is wrong, a phrase each.
type Wrong = Vec<String>;

impl Files {
    /// The files as they are now.
    pub(crate) fn read(settings: &Tls) -> Result<Self, Wrong> {
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
                is_key_open: mode & 0o004 != 0,
                ca: ca.map(|(bytes, _)| bytes),
            }),
            (certificate, key, ca) => Err([certificate.err(), key.err(), ca.err()]
                .into_iter()
                .flatten()
                .collect()),
        }
    }

    /// Tells these contents from others.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let parts = [Some(&self.certificate), Some(&self.key), self.ca.as_ref()];
        let each: Vec<u8> = parts
            .into_iter()
            .flatten()
            .flat_map(|bytes| fingerprint(bytes))
            .collect();
        fingerprint(&each)
    }

    /// Makes of them what handshakes need.
    pub(crate) fn build(&self, settings: &Tls, demand: Demand) -> Result<Material, Wrong> {
        // Passed on by hand everywhere: nobody may depend on a default of the process that another library could set.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificate =
            certificates(&settings.certificate, &self.certificate).and_then(|chain| {
                validity(&settings.certificate, &chain).map(|validity| (chain, validity))
            });
        let key = private_key(&settings.key, &self.key);
        let clients = settings.clients.as_ref().zip(self.ca.as_ref());
        let verifier = clients
            .map(|(clients, ca)| verifier(&clients.ca, ca, demand, &provider))
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
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(settings.min_version))
            .map_err(|error| vec![format!("TLS: {error}")])?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        // Every connection shows its certificate anew, so a new list of authorities counts from the next one on.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let (not_before, not_after) = validity;
        Ok(Material {
            config: Arc::new(config),
            not_before,
            not_after,
        })
    }
}

fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match least {
        TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &BOTH[..1],
    }
}

/// A file's bytes and mode. The buffer never grows, so no copy of a key stays behind.
fn contents(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), String> {
    let unreadable = |error: std::io::Error| format!("can't read {}: {error}", path.display());
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Err(format!(
            "{} is not a file of at most {LONGEST} bytes",
            path.display()
        ));
    }
    let length = metadata.len();
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(length).unwrap_or_default() + 1,
    ));
    file.take(length + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > length {
        return Err(format!("{} grew while it was read", path.display()));
    }
    Ok((bytes, metadata.mode()))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(format!(
            "{}: there is no certificate in this file",
            path.display()
        )),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// When the first certificate of a chain is valid.
fn validity(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(Timestamp, Timestamp), String> {
    let malformed = |reason: String| {
        format!(
            "{}: the first certificate can't be read: {reason}",
            path.display()
        )
    };
    let certificate =
        Certificate::from_der(&chain[0]).map_err(|error| malformed(error.to_string()))?;
    let validity = certificate.tbs_certificate().validity();
    let time = |time: &x509_cert::time::Time| {
        let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
        // X.509 counts to the end of the year 9999, as this does.
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    };
    Ok((time(&validity.not_before), time(&validity.not_after)))
}

fn private_key(path: &Path, pem: &[u8]) -> Result<Arc<dyn rustls::sign::SigningKey>, String> {
    let no_key = |error| {
        format!(
            "{}: {error}; a key is PEM without a passphrase",
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
    demand: Demand,
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
    let builder = if demand == Demand::ByPath {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder
        .build()
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// The files of a listener's TLS.
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
