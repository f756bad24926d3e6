//! The names in a certificate.

use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use crate::model::CertificateName;

/// The subject alternative names of a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateNames {
    pub(crate) dns: Vec<String>,
    pub(crate) uris: Vec<String>,
}

impl CertificateNames {
    /// Reads the names of a DER certificate; none if it is malformed. The common name does not
    /// count (RFC 9525 §2).
    pub fn of(certificate: &[u8]) -> Self {
        let mut names = Self::default();
        let Ok(certificate) = Certificate::from_der(certificate) else {
            return names;
        };
        let Ok(Some((_, alternatives))) = certificate
            .tbs_certificate()
            .get_extension::<SubjectAltName>()
        else {
            return names;
        };
        for name in alternatives.0 {
            match name {
                GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                GeneralName::UniformResourceIdentifier(uri) => names.uris.push(uri.to_string()),
                _ => {}
            }
        }
        names
    }

    /// Whether one of the names matches `allowed`. An empty list allows every certificate.
    pub fn are_on(&self, allowed: &[CertificateName]) -> bool {
        let matches = |name: &CertificateName| {
            self.dns.iter().any(|dns| name.is_dns(dns))
                || self.uris.iter().any(|uri| name.is_uri(uri))
        };
        allowed.is_empty() || allowed.iter().any(matches)
    }
}
