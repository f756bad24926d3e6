//! Servers whose own certificate is trusted by name: it is in the `ca_file` itself.
//!
//! `openssl req -x509` makes such certificates by default: they sign themselves and say CA:TRUE.
//! RFC 5280 has no path to them, so webpki refuses them; OpenSSL and Go accept them.

use std::{sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_cert::{Certificate, der::Decode};

/// Verifies as usual, and accepts also a listed certificate that is used by its server.
#[derive(Debug)]
pub(super) struct ListedCertificates {
    issued: Arc<WebPkiServerVerifier>,
    listed: Vec<CertificateDer<'static>>,
}

impl ListedCertificates {
    /// # Errors
    /// There is no root certificate.
    pub(super) fn new(
        roots: RootCertStore,
        listed: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let issued = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { issued, listed })
    }
}

/// Checks what a path of certificates would show: the validity and the name.
fn verify_listed(
    certificate: &CertificateDer<'_>,
    server: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate().validity();
    let now = Duration::from_secs(now.as_secs());
    if now > validity.not_after.to_unix_duration() {
        return Err(CertificateError::Expired.into());
    }
    if now < validity.not_before.to_unix_duration() {
        return Err(CertificateError::NotValidYet.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, server)
}

impl ServerCertVerifier for ListedCertificates {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let issued =
            self.issued
                .verify_server_cert(certificate, intermediates, server, ocsp_response, now);
        // The server proves by its signature that it has the key of the certificate.
        if issued.is_err() && self.listed.iter().any(|listed| listed == certificate) {
            verify_listed(certificate, server, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        issued
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rustls::crypto::aws_lc_rs;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    /// Made by `openssl req -x509`, for 127.0.0.1, until 2099, with CA:TRUE.
    const SELF_SIGNED: &[u8] = include_bytes!("listed_certificate/self-signed.pem");
    /// Another of the kind, without a subjectAltName.
    const NAMELESS: &[u8] = include_bytes!("listed_certificate/nameless.pem");

    fn certificate(pem: &[u8]) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem).expect("PEM")
    }

    fn verify(listed: &[u8], shown: &[u8], server: &str, at: &str) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(listed)).expect("a root");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = ListedCertificates::new(roots, vec![certificate(listed)], provider)
            .expect("a verifier");
        let at: Timestamp = at.parse().expect("a time");
        let seconds = u64::try_from(at.as_second()).expect("after 1970");
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let server = ServerName::try_from(server.to_owned()).expect("a name");
        verifier
            .verify_server_cert(&certificate(shown), &[], &server, &[], now)
            .map(drop)
    }

    #[test]
    fn a_listed_certificate_is_trusted_for_its_names_and_times_alone() {
        let (here, now) = ("127.0.0.1", "2027-01-01T00:00:00Z");
        assert_eq!(verify(SELF_SIGNED, SELF_SIGNED, here, now), Ok(()));
        for (listed, shown, server, at) in [
            (SELF_SIGNED, SELF_SIGNED, "127.0.0.2", now),
            (SELF_SIGNED, SELF_SIGNED, here, "2020-01-01T00:00:00Z"),
            (SELF_SIGNED, SELF_SIGNED, here, "2100-01-01T00:00:00Z"),
            (NAMELESS, SELF_SIGNED, here, now),
            (NAMELESS, NAMELESS, here, now),
        ] {
            verify(listed, shown, server, at).expect_err(server);
        }
    }
}
