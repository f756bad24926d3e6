//! TLS as a client: trusted roots and the client certificate.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::listed_certificate::ListedCertificates;

/// Whom a TLS client trusts, and how it authenticates itself.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// PEM file with the trusted CA certificates, or with a server's own; `None` means the
    /// system's CAs.
    pub ca_file: Option<PathBuf>,
    /// PEM files with the client's certificate chain and its private key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Builds a TLS client configuration. Reads the files now.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub fn client_config(identity: &Identity) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let roots = trusted_roots(identity)?;
    let builder = match &identity.ca_file {
        None => builder.with_root_certificates(roots),
        Some(file) => {
            let verifier = ListedCertificates::new(roots, certificates(file)?, provider)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    match &identity.client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("{}: {error}", key.display()))?;
            let pair = || format!("{} and {}", certificate.display(), key.display());
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|error| format!("{}: {error}", pair()))
        }
    }
}

/// Returns the trusted CA certificates. Reads the file now.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub fn trusted_roots(identity: &Identity) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match &identity.ca_file {
        Some(file) => {
            for certificate in certificates(file)? {
                roots
                    .add(certificate)
                    .map_err(|error| format!("{}: {error}", file.display()))?;
            }
        }
        None => {
            // A machine without any root certificates can still use plain HTTP on loopback. TLS
            // then fails with an unknown issuer.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes =
        fs::read(file).map_err(|error| format!("can't read {}: {error}", file.display()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{}: the file has no certificate", file.display())),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}
